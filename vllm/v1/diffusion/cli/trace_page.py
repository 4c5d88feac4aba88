# SPDX-License-Identifier: Apache-2.0
"""Writes finished requests as one page that replays their denoising, for any browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm.v1.diffusion.message.pieces import Piece
from vllm.v1.diffusion.pages.fill import filled


@dataclass(frozen=True)
class TracedRequest:
    """A finished request.

    Attributes:
        prompt: Its prompt.
        pieces: Its tokens' texts.
        token_ids: Their ids.
        trace: For every token the step that unmasked it, from 0, and its probability then.
        blocks: Tokens of each block, in order.
        steps: Denoising steps in all.
        end: Why it ended.
    """

    prompt: str
    pieces: Sequence[Piece]
    token_ids: Sequence[int]
    trace: Sequence[tuple[int, float]]
    blocks: Sequence[int]
    steps: int
    end: str


def trace_page(requests: Sequence[TracedRequest], how: str) -> str:
    """The page: one HTML file that needs nothing else and asks no network.

    Args:
        requests: What it shows, in this order.
        how: A line on the model and its parameters.
    """
    data = {"how": how, "requests": [_request(r) for r in requests]}
    return filled(__package__, "trace_page.html", data)


class TraceFile:
    """A page that grows with every request, and is whole at any time."""

    def __init__(self, path: str) -> None:
        """Checks that the file can be written, before an engine is started for it.

        Raises:
            OSError: It cannot.
        """
        self.path = Path(path).expanduser()
        self._requests: list[TracedRequest] = []
        existed = self.path.exists()
        with self.path.open("a"):
            pass
        if not existed:
            self.path.unlink()

    def add(self, requests: Sequence[TracedRequest], how: str) -> None:
        """Writes the page anew, with these requests as its last.

        Raises:
            OSError: The file cannot be written.
        """
        self._requests += requests
        self.path.write_text(trace_page(self._requests, how), "utf-8")


def _request(request: TracedRequest) -> dict[str, object]:
    rows = zip(request.pieces, request.token_ids, request.trace, strict=True)
    return {
        "prompt": request.prompt,
        "blocks": list(request.blocks),
        "steps": request.steps,
        "end": request.end,
        "tokens": [
            {
                "text": piece.text,
                "id": token_id,
                "step": step,
                "confidence": round(confidence, 5),
                "special": piece.special,
            }
            for piece, token_id, (step, confidence) in rows
        ],
    }
