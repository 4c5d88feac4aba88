# SPDX-License-Identifier: Apache-2.0
"""A terminal that remembers what it showed, and a program that runs on one."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

_TOKEN = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|(\r\n|\n|\r)|([^\x1b\r\n])", re.S)


class Screen:
    """As much of a terminal as the program uses.

    ``frames`` holds every picture that the program replaced by another.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows = [""]
        self.y = self.x = 0
        self.frames: list[str] = []

    @property
    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.rows).rstrip("\n")

    def feed(self, data: str) -> None:
        for argument, command, newline, char in _TOKEN.findall(data):
            if command == "A":
                self.frames.append(self.text)
                self.y -= int(argument or 1)
                assert self.y >= 0, "drawn above the screen"
            elif command == "J":
                del self.rows[self.y + 1 :]
                self.rows[self.y] = self.rows[self.y][: self.x]
            elif command == "K":
                self.rows[self.y] = self.rows[self.y][: self.x]
            elif newline == "\r":
                self.x = 0
            elif newline:
                self._down()
            elif char:
                if self.x == self.columns:
                    self._down()
                row = self.rows[self.y].ljust(self.x)
                self.rows[self.y] = row[: self.x] + char + row[self.x + 1 :]
                self.x += 1

    def _down(self) -> None:
        self.y += 1
        self.x = 0
        if self.y == len(self.rows):
            self.rows.append("")


def _lead_terminal() -> None:
    """Makes the new process the one that its terminal's keys reach."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Background jobs of a shell ignore it, and so would what they start.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class OnTerminal:
    """A program whose input and output are a terminal of a given size."""

    def __init__(self, command: list[str], columns: int = 100, rows: int = 30) -> None:
        self.screen = Screen(columns)
        self.raw = ""
        self._seen = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._terminal, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": str(rows)}
        self.process = subprocess.Popen(
            command,
            stdin=side,
            stdout=side,
            stderr=side,
            env=environment,
            start_new_session=True,
            preexec_fn=_lead_terminal,
        )
        os.close(side)

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def read_until(self, wanted: str, seconds: float = 240, key: str = "") -> None:
        """Reads until the text is written, behind what was waited for before; "" is the end.

        While nothing comes, `key` is pressed now and then: a signal that arrives just before input() waits
        is only seen with the next one.
        """
        deadline = time.monotonic() + seconds
        while not wanted or (found := self.raw.find(wanted, self._seen)) < 0:
            assert time.monotonic() < deadline, f"no {wanted!r} in {self.raw[-2000:]!r}"
            if not select.select([self._terminal], [], [], 1)[0]:
                self.type(key)
                continue
            try:
                data = os.read(self._terminal, 65536)
            except OSError:  # Linux: the other side is closed
                data = b""
            if not data:
                assert not wanted, f"ended without {wanted!r}: {self.raw[-2000:]!r}"
                return
            text = self._decoder.decode(data)
            self.raw += text
            self.screen.feed(text)
        self._seen = found + len(wanted)

    def end(self, key: str = "") -> int:
        """Reads the rest; the exit status."""
        self.read_until("", key=key)
        os.close(self._terminal)
        return self.process.wait(60)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)
