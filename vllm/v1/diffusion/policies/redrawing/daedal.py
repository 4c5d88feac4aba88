# SPDX-License-Identifier: Apache-2.0
"""``daedal``: an answer that begins short and grows until the model expects its end (DAEDAL)."""

from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from typing_extensions import override

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, Redrawn, UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import THRESHOLD, Parameter, PositiveCount, Share

END_TOKEN_ID = "end_token_id"
"""The number that is the model's own where nobody says another."""

_Id = Annotated[int, Field(ge=0, le=1 << 24)]
"""Numbers of policies are float32, which holds no larger integers exactly."""

END = Parameter(
    "Id of the end token: by which `daedal` judges the length, and at which `d3llm` stops with "
    "`diffusion_early_stop`.",
    _Id,
    otherwise="the model's end token",
)


class Daedal(UnmaskingPolicy):
    """Lengthens an answer of masks, then denoises it and puts masks where the model is least sure (DAEDAL).

    How much an answer expects its end is the sum of the end token's probabilities at the last
    ``end_check_tokens`` positions that propose it, divided by ``end_check_tokens``.

    First steps write nothing. While the end is expected less than ``end_threshold``, each adds
    ``expansion_factor`` masks at the end; then half of ``end_check_tokens`` end tokens are put there, where a
    position proposes the end at all: with an ``end_threshold`` of 0 none may, or a request may ban it.

    Further steps work in a window of ``window_length`` positions, which moves on by its length when it is
    full. They unmask what is above ``threshold``, else the best, but no position that proposes the mask token
    unless all do. Where the end is expected less than ``insert_end_threshold``, the window's least sure mask
    becomes ``expansion_factor`` masks if it is below ``insert_threshold``. What leaves the longest answer
    on the right is lost.
    """

    elastic = True
    numbers: ClassVar = {
        "threshold": THRESHOLD,
        "initial_length": Parameter(
            "Masks that the answer begins with.", PositiveCount, default=64, aliases=("initial_gen_length",)
        ),
        "expansion_factor": Parameter(
            "Masks that are added at the end, or put in the place of one.", PositiveCount, default=8
        ),
        "window_length": Parameter("Positions that are denoised at a time.", PositiveCount, default=32),
        "end_check_tokens": Parameter(
            "Positions at the end by which the length is judged.",
            PositiveCount,
            default=32,
            aliases=("eos_check_tokens",),
        ),
        "end_threshold": Parameter(
            "How much the end must be expected for an answer to be long enough, before it is denoised.",
            Share,
            default=0.5,
            aliases=("eos_confidence_threshold",),
        ),
        "insert_end_threshold": Parameter(
            "How much the end must be expected for no masks to be inserted.",
            Share,
            default=0.9,
            aliases=("expand_eos_confidence_threshold",),
        ),
        "insert_threshold": Parameter(
            "Confidence below which a mask becomes several.",
            Share,
            default=0.1,
            aliases=("low_conf_threshold",),
        ),
        END_TOKEN_ID: END,
    }

    @override
    def make_memory(self, requests: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        begin = torch.zeros(requests, dtype=torch.int64, device=device)
        return {"denoises": torch.zeros(requests, dtype=torch.bool, device=device), "window": begin}

    @override
    def redraw(self, stats: PositionStats, canvas: CanvasView) -> Redrawn:
        proposals, room = canvas.proposals, canvas.room
        assert proposals is not None and room is not None
        columns = torch.arange(canvas.masked.shape[1], device=canvas.masked.device)
        number = {name: values.to(torch.int64)[:, None] for name, values in canvas.values.items()}
        answer = _Answer(
            canvas.tokens, canvas.masked, canvas.block_length.to(torch.int64)[:, None], room[:, None], columns
        )
        expected = _expected_end(canvas, answer, number["end_check_tokens"], number[END_TOKEN_ID])

        denoises = canvas.memory["denoises"][:, None].clone()
        grows = ~denoises & (expected < canvas.values["end_threshold"][:, None])
        grows &= answer.length < answer.most
        ended = ~denoises & ~grows
        canvas.memory["denoises"] |= ended[:, 0]

        window = _window(answer, canvas.memory["window"], number["window_length"]) & denoises
        written, token = _written(stats, canvas, window)
        sure = torch.where(window, proposals.confidence, torch.inf)
        low = sure.argmin(dim=1, keepdim=True)
        inserts = denoises & (expected < canvas.values["insert_end_threshold"][:, None])
        inserts &= (answer.length < answer.most) & ~written.gather(1, low)
        inserts &= sure.gather(1, low) < canvas.values["insert_threshold"][:, None]

        factor = number["expansion_factor"]
        added = torch.where(grows, factor, 0) + torch.where(inserts, factor - 1, 0)
        added += torch.where(ended & (expected > 0), number["end_check_tokens"] // 2, 0)
        length = torch.minimum(answer.length + added, answer.most)
        # Everything behind the mask that becomes several moves on.
        place = torch.where(inserts, low, answer.length)
        source = torch.where(columns < place + torch.where(inserts, factor, 0), columns, columns - added)
        new = (columns >= place) & (columns < place + torch.where(inserts, factor, added))
        source = torch.where(new | (columns >= length), -1, source)
        from_ = source.clamp(min=0)
        masked = (answer.masked & ~written).gather(1, from_) & (source >= 0)
        masked |= new & ~ended & (columns < length)
        tokens = torch.where(written, token, answer.tokens).gather(1, from_)
        blank = torch.where(new & ended & (columns < length), number[END_TOKEN_ID], proposals.mask_id)
        return Redrawn(
            tokens=torch.where(source >= 0, tokens, blank),
            masked=masked,
            source=source,
            written=written,
            confidence=proposals.confidence,
            unfinished=torch.zeros_like(ended[:, 0]),
            length=length[:, 0],
        )


class _Answer(NamedTuple):
    """An answer: tokens and masks ``[n, W]``, its length and the longest one, int64 ``[n, 1]``, columns."""

    tokens: torch.Tensor
    masked: torch.Tensor
    length: torch.Tensor
    most: torch.Tensor
    columns: torch.Tensor


def _expected_end(
    canvas: CanvasView, answer: _Answer, count: torch.Tensor, end: torch.Tensor
) -> torch.Tensor:
    """How much the end is expected, float32 ``[n, 1]``: by the last ``count`` positions that propose it."""
    assert canvas.proposals is not None
    ends = (canvas.proposals.token == end) & (answer.columns < answer.length)
    number = ends.flip(1).cumsum(dim=1).flip(1)
    last = ends & (number <= count)
    return torch.where(last, canvas.proposals.confidence, 0.0).sum(dim=1, keepdim=True) / count


def _window(answer: _Answer, begin: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """The masks of the window, bool ``[n, W]``; ``begin`` moves on over windows without masks, in place."""
    first = answer.masked.to(torch.int8).argmax(dim=1)
    steps = (first - begin).clamp(min=0) // length[:, 0]
    begin += steps * length[:, 0]
    behind = answer.columns - begin[:, None]
    return answer.masked & (behind >= 0) & (behind < length)


def _written(
    stats: PositionStats, canvas: CanvasView, window: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which positions a step writes, bool ``[n, W]``, and the tokens."""
    proposals = canvas.proposals
    assert proposals is not None
    proposed = window & (proposals.token != proposals.mask_id)
    sure = proposed & (proposals.confidence > canvas.values["threshold"][:, None])
    # Where every position proposes the mask token, the best of the other tokens: the step must write one.
    some = proposed.any(dim=1, keepdim=True)
    score = torch.where(some, proposals.confidence, stats.confidence)
    score = torch.where(torch.where(some, proposed, window), score, -1.0)
    best = torch.zeros_like(window).scatter_(1, score.argmax(dim=1, keepdim=True), True) & window
    written = torch.where(sure.any(dim=1, keepdim=True), sure, best)
    return written, torch.where(some, proposals.token, stats.token)
