# SPDX-License-Identifier: Apache-2.0
"""Draws canvases as they settle, on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_MASK = "░"
_FRAME_SECONDS = 0.06


@dataclass
class CanvasLine:
    """One request's line: its prompt and what has settled so far."""

    prompt: str
    cells: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    note: str = ""

    def text_at(self, step: int) -> str:
        """The answer as it stood after a denoising step; open cells are masks."""
        return "".join(
            cell if settled <= step else _MASK
            for cell, settled in zip(self.cells, self.steps, strict=True)
        )


class CanvasView:
    """Several canvases, one below the other; nothing where it is no terminal."""

    def __init__(
        self,
        lines: Sequence[CanvasLine],
        detokenize: Callable[[int], str],
        live: bool,
    ) -> None:
        """Makes the view.

        Args:
            lines: One for each request.
            detokenize: Text of one token.
            live: Whether standard output is a terminal to draw on.
        """
        self.lines = list(lines)
        self.detokenize = detokenize
        self.live = live
        self.seconds_drawing = 0.0
        self._drawn = False

    def extend(
        self, index: int, token_ids: Sequence[int], trace: Sequence[tuple[int, float]]
    ) -> None:
        """Adds a settled block to a line and replays how it settled.

        Args:
            index: Index of the line.
            token_ids: The block's tokens.
            trace: ``CompletionOutput.unmask_trace`` of these tokens.
        """
        line = self.lines[index]
        line.cells += [self.detokenize(token) for token in token_ids]
        line.steps += [step for step, _ in trace]
        if not self.live:
            return
        begun = time.perf_counter()
        for step in sorted({step for step, _ in trace}):
            self._draw(index, step)
            time.sleep(_FRAME_SECONDS)
        self.seconds_drawing += time.perf_counter() - begun

    def finish(self, index: int, text: str, note: str) -> None:
        """Replaces a line's canvas by the finished text, with a note behind it."""
        line = self.lines[index]
        line.cells, line.steps, line.note = [text], [0], f"  {note}"
        if self.live:
            self._draw(index, 0)
        else:
            print(f"{line.prompt}{text}{line.note}", flush=True)

    def _draw(self, moving: int, step: int) -> None:
        if self._drawn:
            print(f"\033[{len(self.lines)}A", end="")
        self._drawn = True
        for index, line in enumerate(self.lines):
            shown = line.text_at(step if index == moving else sys.maxsize)
            print(f"\r\033[K\033[2m{line.prompt}\033[0m\033[1m{shown}\033[0m{line.note}")
        sys.stdout.flush()
