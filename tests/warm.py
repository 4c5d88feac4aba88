# SPDX-License-Identifier: Apache-2.0
"""Processes that begin with vLLM imported.

An interpreter spends eight seconds and more on imports before it does anything, an engine of two processes
twice as much. Here one process imports, and every other is forked from it: it never runs an engine, has one
thread, and is the same for all. What vLLM spawns is forked from it as well; all that reaches such a process
is pickled as if it were spawned. ``COLD=1`` has every process import for itself, as it does for users;
``vllm serve`` and ``vllm diffuse`` do in most of their tests.
"""

from __future__ import annotations

import atexit
import multiprocessing.context as contexts
import multiprocessing.forkserver as forkserver
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import reduction
from pathlib import Path
from typing import IO, Any, cast

ROOT = Path(__file__).parent.parent
COLD = os.environ.get("COLD") == "1"
_EARLY = ("OMP_NUM_THREADS", "VLLM_PLUGINS", "PYTHONHASHSEED")
"""Read before a forked process can change it."""


class _Here:
    """A process's target, run where its parent stands: environment, folder, standard streams."""

    def __init__(self, target: Callable[..., Any]) -> None:
        self.target = target

    def __getstate__(self) -> dict[str, Any]:
        streams = [reduction.DupFd(number) for number in (1, 2)]
        return {"target": self.target, "environment": dict(os.environ), "streams": streams}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Before the arguments are unpickled, which may import what reads the environment.
        os.environ.clear()
        os.environ.update(state["environment"])
        for number, stream in enumerate(state["streams"], 1):
            os.dup2(stream.detach(), number)
        self.target = state["target"]
        _in_child()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.target(*args, **kwargs)


class WarmProcess(contexts.ForkServerProcess):
    """As ``multiprocessing.Process``."""

    def __init__(self, group: None = None, target: Callable[..., Any] | None = None, **more: Any) -> None:
        super().__init__(group, target and _Here(target), **more)


class WarmContext(contexts.ForkServerContext):
    """Stands in for the context that spawns."""

    Process = WarmProcess


WARM = WarmContext()


def install() -> None:
    """From here on, what this process and its children spawn is forked from the warm process."""
    if COLD:
        return
    forkserver.set_forkserver_preload(["tests.warm_imports"])
    cast("dict[str, Any]", contexts._concrete_contexts)["spawn"] = WARM  # type: ignore[attr-defined]


def _in_child() -> None:
    install()
    # A child uses its parent's server; Python would start another one.
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    if "vllm.logger" in sys.modules:
        from vllm import envs
        from vllm.logger import _configure_vllm_root_logger

        envs.disable_envs_cache()
        _configure_vllm_root_logger()


def _as_main(module: str, arguments: Sequence[str], path: list[str], streams: list[Any]) -> None:
    """What ``python -m module`` does, in a forked process."""
    for number, stream in enumerate(streams):
        os.dup2(stream.detach(), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), *path]
    sys.argv = [module, *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


class Program:
    """As ``subprocess.Popen``, of a module that is run as a program in a forked process."""

    def __init__(
        self, module: str, arguments: Sequence[str], streams: Sequence[IO[Any]], environment: dict[str, str]
    ) -> None:
        path = [one for one in environment.get("PYTHONPATH", "").split(os.pathsep) if one]
        given = [_Stream(stream.fileno()) for stream in streams]
        self._process = WARM.Process(target=_as_main, args=(module, [*arguments], path, given))
        here = dict(os.environ)
        os.environ.clear()
        os.environ.update(environment)
        try:
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(here)

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended, if it has."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As :attr:`returncode`."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Waits until it ends.

        Raises:
            subprocess.TimeoutExpired: It has not ended.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._process.name), timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends it a signal, if it has not ended."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once, if it has not ended."""
        self.send_signal(signal.SIGKILL)


class _Stream:
    """A file descriptor on its way to a child."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _received, (reduction.DupFd(self.number),)


def _received(stream: Any) -> Any:
    return stream


def start(
    module: str,
    arguments: Sequence[str] = (),
    *,
    streams: Sequence[IO[Any]],
    env: Mapping[str, str] | None = None,
) -> Program | subprocess.Popen[bytes]:
    """Runs a module as a program, with the standard streams that are given."""
    environment = dict(os.environ if env is None else env)
    if COLD or any(environment.get(name) != os.environ.get(name) for name in _EARLY):
        command = [sys.executable, "-m", module, *arguments]
        given, out, err = streams
        return subprocess.Popen(command, stdin=given, stdout=out, stderr=err, env=environment, cwd=ROOT)
    return Program(module, arguments, streams, environment)


def run(
    module: str,
    arguments: Sequence[str] = (),
    *,
    input: str = "",
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run`` of ``python -m module`` with captured streams."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(input.encode())
        given.seek(0)
        program = start(module, arguments, streams=(given, out, err), env=env)
        try:
            code = program.wait(timeout)
        finally:
            program.kill()
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return subprocess.CompletedProcess([module, *arguments], code, *texts)
