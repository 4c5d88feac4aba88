# SPDX-License-Identifier: Apache-2.0
"""One ``vllm serve`` of the bundled model for all tests, and the official client."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from tests import warm
from tests.cli.browser import browser

MODEL = "bundled"

__all__ = ["browser"]


@dataclass(frozen=True)
class Server:
    """A running server.

    ``url`` has no path; ``log`` is the file that it writes to.
    """

    url: str
    log: Path
    process: subprocess.Popen[bytes] | warm.Program

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return str(response.read().decode())

    def metrics(self) -> dict[str, float]:
        """Every sample of ``/metrics``, summed over its labels."""
        values: dict[str, float] = {}
        for name, value in re.findall(r"^(vllm:\w+)(?:\{.*\})? (\S+)$", self.get("/metrics"), re.M):
            values[name] = values.get(name, 0.0) + float(value)
        return values

    def wait_for(self, met: Callable[[dict[str, float]], bool], seconds: float = 60) -> None:
        """Polls the metrics until a condition is met."""
        deadline = time.monotonic() + seconds
        while not met(self.metrics()):
            assert time.monotonic() < deadline, self.metrics()
            time.sleep(0.2)


@contextmanager
def serving(
    model: str | Path, log: Path, *options: str, cold: bool = False, patience: float = 300
) -> Iterator[Server]:
    """Runs ``vllm serve`` until it is healthy, and ends it after.

    Args:
        model: The checkpoint.
        log: The file that it writes to.
        *options: Further options.
        cold: Whether interpreters are started, as a user does; see ``tests/warm.py``.
        patience: Seconds that the start may take.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    module = "vllm.entrypoints.cli.main"
    command = ["serve", str(model)]
    command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)]
    # In float32 an answer does not depend on what else is in the batch.
    command += ["--dtype", "float32", "--enforce-eager", *options]
    process: subprocess.Popen[bytes] | warm.Program
    with log.open("wb") as file, Path(os.devnull).open() as nothing:
        if cold:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *command], stdin=nothing, stdout=file, stderr=file
            )
        else:
            process = warm.start(module, command, streams=(nothing, file, file))
    running = Server(f"http://127.0.0.1:{port}", log, process)
    try:
        _wait_until_healthy(running, patience)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from vllm.v1.diffusion import bundled_path

    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(bundled_path(), log, *tools, "--diffusion-page", cold=True) as running:
        yield running


def _wait_until_healthy(server: Server, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            server.get("/health")
            return
        except OSError:
            assert server.process.poll() is None, server.log.read_text()[-6000:]
            assert time.monotonic() < deadline, server.log.read_text()[-6000:]
            time.sleep(0.5)


def client_of(server: Server) -> openai.OpenAI:
    """The official client."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def client(server: Server) -> openai.OpenAI:
    return client_of(server)
