# SPDX-License-Identifier: Apache-2.0
"""Tells that a long operation is under way."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def progress(what: str, after: float = 2.0, every: float = 5.0) -> Iterator[None]:
    """Shows on standard error that ``what`` goes on, once it takes long.

    On a terminal one line counts the seconds; elsewhere a line appears now and
    then.

    Args:
        what: What goes on, such as ``"starting the engine"``.
        after: Seconds before anything is shown.
        every: Seconds between lines where standard error is no terminal.
    """
    done = threading.Event()
    begun = time.monotonic()
    live = sys.stderr.isatty()

    def show() -> None:
        if done.wait(after):
            return
        while True:
            line = f"{what} … {time.monotonic() - begun:.0f} s"
            before, after_ = ("\r", "") if live else ("", "\n")
            print(f"{before}{line}", end=after_, file=sys.stderr, flush=True)
            if done.wait(0.5 if live else every):
                return

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
