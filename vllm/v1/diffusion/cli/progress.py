# SPDX-License-Identifier: Apache-2.0
"""Tells that a long operation is under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import psutil

_AFTER, _EVERY = 2.0, 10.0


@contextmanager
def progress(what: str, stream: TextIO) -> Iterator[None]:
    """Shows that ``what`` goes on, once this process is two seconds old.

    On a terminal one line counts the seconds since the process began, and is gone
    at the end; elsewhere a line appears now and then.

    Args:
        what: What goes on, such as ``"starting the engine"``.
        stream: Where to show it.
    """
    done = threading.Event()
    begun = psutil.Process().create_time()
    live = stream.isatty()

    def show() -> None:
        if done.wait(max(begun + _AFTER - time.time(), 0)):
            return
        while True:
            line = f"{what} … {time.time() - begun:.0f} s"
            print(f"\r{line}" if live else line, end="" if live else "\n", file=stream)
            stream.flush()
            if done.wait(0.5 if live else _EVERY):
                break
        if live:
            print("\r\033[K", end="", file=stream, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
