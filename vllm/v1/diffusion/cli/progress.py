# SPDX-License-Identifier: Apache-2.0
"""Tells that a long operation is under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def progress(
    what: str, stream: TextIO, after: float = 2.0, every: float = 10.0
) -> Iterator[None]:
    """Shows that ``what`` goes on, once it takes long.

    On a terminal one line counts the seconds, and is gone at the end; elsewhere a
    line appears now and then.

    Args:
        what: What goes on, such as ``"starting the engine"``.
        stream: Where to show it.
        after: Seconds before anything is shown.
        every: Seconds between lines where the stream is no terminal.
    """
    done = threading.Event()
    begun = time.monotonic()
    live = stream.isatty()

    def show() -> None:
        if done.wait(after):
            return
        while True:
            line = f"{what} … {time.monotonic() - begun:.0f} s"
            print(f"\r{line}" if live else line, end="" if live else "\n", file=stream)
            stream.flush()
            if done.wait(0.5 if live else every):
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
