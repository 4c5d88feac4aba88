# SPDX-License-Identifier: Apache-2.0
"""Keeps what the engine and its libraries print off the screen while it starts."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, TextIO

_ERROR = re.compile(r"(?:^|[\s.])([A-Za-z_]*(?:Error|Exception)): (\S.*)")
_UNSPECIFIC = ("Engine core initialization failed", "WorkerProc initialization failed")


class EngineLog:
    """What was printed meanwhile, by this process and those that it started.

    Processes started meanwhile keep writing here for as long as they live.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def last_error(self) -> str | None:
        """The message of the last exception that was printed, if any."""
        size = os.fstat(self._file.fileno()).st_size
        text = os.pread(self._file.fileno(), size, 0).decode(errors="replace")
        found = None
        for line in text.splitlines():
            match = _ERROR.search(line)
            if match and not any(part in match[2] for part in _UNSPECIFIC):
                found = match[2].strip()
        return found


@contextlib.contextmanager
def quiet(active: bool) -> Iterator[tuple[EngineLog | None, TextIO]]:
    """Sends both output streams to a file, below Python: C++ and children too.

    Args:
        active: Whether to do so; else nothing is changed.

    Yields:
        The log, and the standard error stream as it was.
    """
    if not active:
        yield None, sys.stderr
        return
    # Closed when the process ends: the engine's processes write to it till then.
    file = tempfile.TemporaryFile("w+b", buffering=0)  # noqa: SIM115
    saved = os.dup(1), os.dup(2)
    screen = os.fdopen(os.dup(2), "w")
    _flush()
    for fd in (1, 2):
        os.dup2(file.fileno(), fd)
    try:
        yield EngineLog(file), screen
    finally:
        _flush()
        for fd, old in zip((1, 2), saved, strict=True):
            os.dup2(old, fd)
            os.close(old)
        screen.close()


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
