# SPDX-License-Identifier: Apache-2.0
"""A grammar that takes long to compile holds up neither others nor steps; without an engine."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.policies.test_preemption import Engine


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
