# SPDX-License-Identifier: Apache-2.0
"""Draws canvases as they unmask, on a terminal."""

from __future__ import annotations

import shutil
import threading
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from queue import SimpleQueue
from typing import TextIO

_MASK = "░"
_DIM, _BOLD, _PLAIN = "\033[2m", "\033[1m", "\033[0m"
_BLOCK_SECONDS = 0.5
_LONGEST_FRAME, _SHORTEST_FRAME = 0.25, 0.04


@dataclass
class CanvasLine:
    """One request: its prompt, its answer's cells and when each was unmasked."""

    prompt: str
    cells: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    note: str = ""

    def pieces(self, step: int | None) -> list[tuple[str, str]]:
        """Styled text as it stood after a denoising step; None stands for the last."""
        cells = [
            (_BOLD, cell) if step is None or unmasked <= step else (_DIM, _MASK)
            for cell, unmasked in zip(self.cells, self.steps, strict=True)
        ]
        return [(_DIM, self.prompt), *cells, (_PLAIN, self.note)]


@dataclass(frozen=True)
class EmittedBlock:
    """A request's next block, or its end.

    Attributes:
        index: Index of the line.
        cells: Text of each token of the block.
        steps: The denoising step that unmasked each.
        end: The whole answer and a note on it, if it is complete.
    """

    index: int
    cells: list[str]
    steps: list[int]
    end: tuple[str, str] | None = None


class CanvasView:
    """Several canvases, one below the other, drawn by a thread of its own.

    Blocks arrive when they are unmasked. The order in which their positions were
    unmasked is replayed, at a speed that the eye can follow: it may lag behind a
    fast model, and holds nothing up.
    """

    def __init__(self, prompts: Sequence[str], stream: TextIO) -> None:
        """Starts drawing on a terminal."""
        self.lines = [CanvasLine(prompt) for prompt in prompts]
        self.stream = stream
        self._height = 0
        self._queue: SimpleQueue[list[EmittedBlock] | None] = SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def show(self, blocks: list[EmittedBlock]) -> None:
        """Queues blocks that one engine step unmasked; returns at once."""
        self._queue.put(blocks)

    def close(self, at_once: bool = False) -> None:
        """Waits until everything is drawn, or gives up drawing."""
        self._stopped = at_once
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        self._draw({})
        while (blocks := self._queue.get()) is not None and not self._stopped:
            self._replay(blocks)
        self._draw({}, whole=True)

    def _replay(self, blocks: list[EmittedBlock]) -> None:
        frames: dict[int, list[int]] = {}
        for block in blocks:
            line = self.lines[block.index]
            line.cells += block.cells
            line.steps += block.steps
            if block.steps:
                order = sorted(set(block.steps))
                frames[block.index] = [order[0] - 1, *order]
        count = max(map(len, frames.values()), default=0)
        pause = min(max(_BLOCK_SECONDS / max(count, 1), _SHORTEST_FRAME), _LONGEST_FRAME)
        for frame in range(count):
            if self._stopped:
                break
            # All blocks start masked and unmask with the last frame.
            self._draw({i: order[max(frame - count + len(order), 0)] for i, order in frames.items()})
            time.sleep(pause)
        for block in blocks:
            if block.end:
                line = self.lines[block.index]
                text, line.note = block.end
                line.cells, line.steps = [text], [0]
        self._draw({})

    def _draw(self, steps: dict[int, int], whole: bool = False) -> None:
        size = shutil.get_terminal_size()
        rows = [
            row for i, line in enumerate(self.lines) for row in _rows(line.pieces(steps.get(i)), size.columns)
        ]
        if not whole:
            # What has scrolled out of the screen cannot be drawn again.
            rows = rows[-(size.lines - 1) :]
        up = f"\033[{self._height}A" if self._height else ""
        self.stream.write(f"{up}\r\033[J" + "".join(f"{row}\n" for row in rows))
        self.stream.flush()
        self._height = len(rows)


def _rows(pieces: list[tuple[str, str]], columns: int) -> list[str]:
    """Breaks styled text into rows of a terminal."""
    rows, width = [""], 0
    for style, run in groupby(pieces, key=lambda piece: piece[0]):
        rows[-1] += style
        for char in "".join(text for _, text in run):
            cells = _cells(char)
            if char == "\n" or width + cells > columns:
                rows[-1] += _PLAIN
                rows.append(style)
                width = 0
            if char != "\n":
                # A control character in an answer must not reach the terminal.
                rows[-1] += char if char.isprintable() else "·"
                width += cells
        rows[-1] += _PLAIN
    return rows


def _cells(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
