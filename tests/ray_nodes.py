# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of two nodes on this machine: each a raylet with an address of its own and one CPU."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

HEAD, OTHER = "127.0.0.2", "127.0.0.3"
ACROSS = {"distributed_executor_backend": "ray", "tensor_parallel_size": 2}
"""Engine arguments under which each node gets a rank."""


class Cluster:
    """Two nodes.

    Attributes:
        environment: What a process adds to its own to start engines on them.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        """Starts them, with variables of their own; their output goes to ``folder``."""
        with socket.socket() as probe:
            probe.bind((HEAD, 0))
            address = f"{HEAD}:{probe.getsockname()[1]}"
        self.environment = {
            "RAY_ADDRESS": address,
            "VLLM_HOST_IP": HEAD,
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # A head asks for a token, and who joins it must be told to send one.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        # A socket's path is short: Ray's folder is not below the test's.
        self._files = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)
        self._own = {**os.environ, **environment, **self.environment}
        self._nodes: list[subprocess.Popen[bytes]] = []
        port = address.rpartition(":")[2]
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._files.name}")
        self._start(folder / "head.log", HEAD, *head)
        self._start(folder / "other.log", OTHER, f"--address={address}")

    def lose_a_node(self) -> None:
        """Ends the node that is not the head, with all that runs on it, without a word."""
        _kill(self._nodes[1])

    def close(self) -> None:
        """Ends them."""
        for node in reversed(self._nodes):
            _kill(node)
            node.wait()
        self._files.cleanup()

    def _start(self, log: Path, ip: str, *options: str) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={ip}", *options]
        command += ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
        # On a busy machine a raylet takes longer to start than Ray waits.
        own = {"VLLM_HOST_IP": ip, "RAY_raylet_start_wait_time_s": "200"}
        with log.open("wb") as output:
            node = subprocess.Popen(command, env={**self._own, **own}, stdout=output, stderr=output)
        self._nodes.append(node)
        until = time.monotonic() + 240
        while b"will now block" not in log.read_bytes():
            assert node.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)


def _kill(node: subprocess.Popen[bytes]) -> None:
    """A node's processes each have a session of their own."""
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(node.pid)
        for process in (started, *started.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def two_nodes(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A cluster, for as long as it is needed; its arguments are :class:`Cluster`'s."""
    cluster = Cluster(folder, environment or {})
    try:
        yield cluster
    finally:
        cluster.close()
