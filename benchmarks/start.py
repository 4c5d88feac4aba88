# SPDX-License-Identifier: Apache-2.0
"""Processor time from a command to its first canvas, of one tree or of several beside each other.

    python benchmarks/start.py [--runs 3] [--only diffuse] [PYTHON ...]

Each PYTHON is an interpreter that has a build of the fork; by default the one that runs this. The builds
take turns. What counts is the user and system time of all processes that a command starts, all waited for:
``vllm diffuse`` for one prompt, and ``vllm serve`` until it has answered one completion and ended.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

PROMPT = "add 1+1="
MAIN = ("-m", "vllm.entrypoints.cli.main")
PR_SET_CHILD_SUBREAPER = 36


def diffuse(python: str) -> None:
    """One prompt, its answer checked."""
    done = subprocess.run(
        [python, *MAIN, "diffuse", "--prompt", PROMPT], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{PROMPT}2"), done.stdout + done.stderr


@cache
def bundled(python: str) -> str:
    """The folder of a build's bundled model; asked once, before anything is counted."""
    code = "from vllm.v1.diffusion.bundled import bundled_path; print(bundled_path())"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.splitlines()[-1]


def serve(python: str) -> None:
    """A server of the bundled model and one completion."""
    model = bundled(python)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, *MAIN, "serve", model, "--served-model-name", "m", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen([*command, "--enforce-eager"], stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            while True:
                assert server.poll() is None, os.pread(log.fileno(), 1 << 20, 0).decode()[-3000:]
                with suppress(OSError):
                    urllib.request.urlopen(f"{url}/health").close()
                    break
                time.sleep(0.5)
            body = json.dumps({"model": "m", "prompt": PROMPT, "max_tokens": 16, "temperature": 0})
            request = urllib.request.Request(
                f"{url}/v1/completions", body.encode(), {"content-type": "application/json"}
            )
            with urllib.request.urlopen(request) as response:
                text = json.loads(response.read())["choices"][0]["text"]
            assert text == "2", text
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


COMMANDS = {"diffuse": diffuse, "serve": serve}


def seconds(command: Callable[[str], None], python: str) -> tuple[float, float]:
    """Processor time and wall-clock time of a command, all its processes waited for."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before, begun = used(), time.monotonic()
    command(python)
    wall = time.monotonic() - begun
    # What its processes left behind ends as this one's children.
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    return used() - before, wall


def main() -> None:
    """Runs and prints a line a command and build."""
    parser = argparse.ArgumentParser()
    parser.add_argument("python", nargs="*", default=[sys.executable])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=COMMANDS)
    args = parser.parse_args()
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for command in [COMMANDS[args.only]] if args.only else COMMANDS.values():
        # Once before: the byte code is written, the files are in the page cache.
        for python in args.python:
            command(python)
        taken: dict[str, list[tuple[float, float]]] = {python: [] for python in args.python}
        for _ in range(args.runs):
            for python, runs in taken.items():
                runs.append(seconds(command, python))
                print(f"{python}: {runs[-1][0]:.1f} s", file=sys.stderr)
        for python, runs in taken.items():
            cpu, wall = (statistics.median(values) for values in zip(*runs, strict=True))
            lowest = min(run[0] for run in runs)
            name = Path(python).parent.parent.parent.name
            print(
                f"vllm {command.__name__} of {name}: {cpu:.1f} s of processor time"
                f" (lowest {lowest:.1f}), {wall:.1f} s"
            )


if __name__ == "__main__":
    main()
