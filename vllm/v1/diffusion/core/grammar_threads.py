# SPDX-License-Identifier: Apache-2.0
"""Threads that compile grammars: several, and behind the engine's steps."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.structured_output import StructuredOutputManager

_THREADS = 8
_NICE = 10
"""What a thread adds to its process's nice value."""


def compile_beside_steps(manager: StructuredOutputManager) -> None:
    """Lets grammars of several requests be compiled at a time, at a lower priority than steps.

    Upstream compiles them in a thread for every two cores, so that on a small host a grammar of seconds
    holds up all that come behind it.

    Args:
        manager: The engine core's, unused so far.
    """
    if manager.vllm_config.model_config.skip_tokenizer_init:
        return  # It compiles none.
    manager.executor.shutdown(wait=False)
    manager.executor = ThreadPoolExecutor(_THREADS, "grammar", initializer=_behind_steps)


def _behind_steps() -> None:
    if sys.platform == "linux":  # Elsewhere a nice value is a process's.
        thread = threading.get_native_id()
        if (server := multiprocessing.parent_process()) is not None:
            # Where OpenMP has bound the main thread to a core, this one would have no other.
            with suppress(OSError):
                os.sched_setaffinity(thread, os.sched_getaffinity(server.pid or 0))
        nice = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(19, nice + _NICE))
