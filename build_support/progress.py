"""Progress on stderr: a moving line on a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import sys
import time

_MB = 1e6


class Progress:
    """Shows how much of a known number of bytes is done.

    Args:
        what: what is being done, for example ``fetching vllm.tar.gz``.
        total: number of bytes in all.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._live = sys.stderr.isatty()
        self._every = 0.2 if self._live else 5.0
        self._start = self._last = time.monotonic()

    def _line(self, done: int) -> str:
        seconds = time.monotonic() - self._start
        share = 100 * done // self._total
        amount = f"{done / _MB:.0f} of {self._total / _MB:.0f} MB"
        return f"{self._what}: {amount} ({share} %), {seconds:.0f} s"

    def show(self, done: int) -> None:
        """Say that ``done`` bytes are done, if it is time to."""
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        print(self._line(done), end="\r" if self._live else "\n", file=sys.stderr, flush=True)

    def finish(self, done: int) -> None:
        """Leave a last line."""
        print(self._line(done), file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print one line about the build on stderr."""
    print(text, file=sys.stderr, flush=True)
