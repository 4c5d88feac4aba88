# SPDX-License-Identifier: Apache-2.0
"""A grammar that takes long to compile holds up neither others nor steps; without an engine."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.policies.scheduling import Engine


@pytest.fixture(scope="module")
def executor() -> Iterator[Any]:
    executor = Engine("sdar", 9, max_model_len=128).scheduler.structured_output_manager.executor
    yield executor
    executor.shutdown()


def test_others_are_compiled_meanwhile(executor: Any) -> None:
    done = threading.Event()
    try:
        for _ in range(7):
            executor.submit(done.wait)
        assert executor.submit(lambda: "compiled").result(timeout=60) == "compiled"
    finally:
        done.set()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a nice value is a process's")
def test_steps_come_first(executor: Any) -> None:
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    own = nice()
    assert executor.submit(nice).result() == min(19, own + 10)
    assert nice() == own


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no cores of their own elsewhere")
def test_they_have_the_server_s_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenMP may bind the engine core's main thread to one core, which a thread would inherit."""
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("one core")
    server = os.getppid()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(pid=server))
    executor = Engine("sdar", 9, max_model_len=128).scheduler.structured_output_manager.executor
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert executor.submit(os.sched_getaffinity, 0).result() == os.sched_getaffinity(server)
    finally:
        os.sched_setaffinity(0, cores)
        executor.shutdown()
