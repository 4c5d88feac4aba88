# SPDX-License-Identifier: Apache-2.0
"""``self_speculation``: a step's draft is verified by the same weights, token by token."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from typing_extensions import override

from vllm.v1.diffusion.policies.adaptive.edit import EDIT_THRESHOLD, MAX_POST_STEPS
from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, Rewrite, UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import (
    THRESHOLD,
    AnyNumber,
    NotNegative,
    Parameter,
    Positive,
    PositiveCount,
    Share,
)

NEVER_RELEASED = 1e30
"""A release score that no score is below of: verification has no memory."""

_Switch = Annotated[int, Field(ge=0, le=1)]

_NUMBERS = {
    "threshold": THRESHOLD,
    "min_span": Parameter("Masks in a row from which a draft is verified.", PositiveCount, default=1),
    "verify_score": Parameter(
        "Score from which a draft is verified: the tokens of it that are expected to be accepted, less what "
        "a verification costs.",
        AnyNumber,
        default=0,
    ),
    "release_score": Parameter(
        "Score below which drafts are verified no more, until one is above `diffusion_verify_score`.",
        AnyNumber,
        default=NEVER_RELEASED,
        otherwise="`--diffusion-config`, else the last draft does not matter",
    ),
    "verify_cost": Parameter("What a verification costs, in accepted tokens.", NotNegative, default=0),
    "confident_cost": Parameter(
        "What it costs for every mask above the threshold, in accepted tokens.", NotNegative, default=0
    ),
    "acceptance_scale": Parameter(
        "How fast the expected acceptance of a token falls with its entropy.", NotNegative, default=1
    ),
    "acceptance_margin": Parameter(
        "With a number above 0: a token is expected to be accepted if its probability is above the second's "
        "by more than that, whatever its entropy.",
        Share,
        default=0,
    ),
    "tempering": Parameter(
        "Exponent of the ratio of probabilities by which a token is accepted.", Positive, default=1
    ),
    "resample": Parameter(
        "1: the first refused token is replaced by a draw from what verification says beyond the draft. "
        "0: it is kept.",
        _Switch,
        default=1,
    ),
}


def first_span(masked: torch.Tensor) -> torch.Tensor:
    """The first run of masks of each block, bool ``[requests, width]``."""
    begun = masked.cumsum(dim=1) > 0
    return masked & ((begun & ~masked).cumsum(dim=1) == 0)


class SelfSpeculation(UnmaskingPolicy):
    """Verifies the first masks of a draft token by token, and accepts what it agrees with (S2D2).

    A step drafts all masks of a block. The next step computes, for each of them, what the model says of it
    with nothing but the tokens before it. From left to right, the draft's tokens are accepted with the
    ratio of the two probabilities, up to the first that is not. Where that unmasks fewer positions than the
    schedule asks for, or a draft is not worth a verification, positions are unmasked as by
    ``low_confidence_dynamic``. It draws random numbers at temperature 0 too.
    """

    speculates = True
    uses_steps = True
    numbers: ClassVar = {
        **_NUMBERS,
        "causal_cache": Parameter(
            "1: prompt and finished blocks are computed causally by token, as an autoregressive model's. "
            "0: block by block.",
            _Switch,
            default=1,
        ),
        "causal_draft": Parameter(
            "1: so are, in a draft, the tokens of the block before its first mask. 0: they see all of it.",
            _Switch,
            default=1,
        ),
    }

    forgets: ClassVar[bool] = False
    """Whether ``release_score`` begins anew with every block; else with every request."""

    @override
    def wants(
        self, stats: PositionStats, canvas: CanvasView, on: torch.Tensor, vocab_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values, span = canvas.values, first_span(canvas.masked)
        margin = values["acceptance_margin"][:, None]
        by_entropy = (-values["acceptance_scale"][:, None] * stats.entropy / math.log(vocab_size)).exp()
        by_margin = (stats.top1 - stats.top2 > margin).to(by_entropy.dtype)
        alpha = torch.where(margin > 0, by_margin, by_entropy)
        accepted = torch.where(span, torch.where(span, alpha, 1.0).cumprod(dim=1), 0.0).sum(dim=1)
        confident = canvas.masked & (stats.confidence > values["threshold"][:, None])
        cost = values["verify_cost"] + values["confident_cost"] * confident.sum(dim=1)
        score, begin, end = accepted - cost, values["verify_score"], values["release_score"]
        # What is neither above the one nor below the other leaves things as they were.
        on = torch.where(end < begin, (score > begin) | (on & (score >= end)), score >= begin)
        return on & span.any(dim=1) & (span.sum(dim=1) >= values["min_span"]), on

    def wanted(self, canvas: CanvasView) -> torch.Tensor:
        """Positions that a round unmasks at least, integers ``[requests]``."""
        count = canvas.block_length // canvas.steps
        return (count + (canvas.round_ < canvas.block_length % canvas.steps)).clamp(min=1)

    @override
    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        accepted = canvas.accepted
        rest = canvas.masked & ~accepted
        missing = (self.wanted(canvas) - accepted.sum(dim=1))[:, None]
        confidence = stats.confidence.masked_fill(~rest, -torch.inf)
        rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        above = rest & (confidence > canvas.values["threshold"][:, None])
        enough = above.sum(dim=1, keepdim=True) >= missing
        more = torch.where(enough, above, rest & (rank < missing)) & (missing > 0)
        return (accepted | more) & ~canvas.waits[:, None]


class SelfSpeculationEdit(SelfSpeculation):
    """The same, with unmasked tokens rewritten as by ``edit`` (S2D2 on LLaDA2.1).

    A draft holds the tokens that its step would rewrite, and they are rewritten when it has been verified.
    """

    uses_steps = False
    forgets = True
    numbers: ClassVar = {
        **_NUMBERS,
        "edit_threshold": EDIT_THRESHOLD,
        "max_post_steps": MAX_POST_STEPS,
    }

    @override
    def make_memory(self, requests: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        return {"post_steps": torch.zeros(requests, dtype=torch.int32, device=device)}

    @override
    def wanted(self, canvas: CanvasView) -> torch.Tensor:
        return torch.ones_like(canvas.block_length)

    @override
    def drafted(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        edits = canvas.unmasked & (stats.token != canvas.tokens)
        edits &= stats.confidence > canvas.values["edit_threshold"][:, None]
        return canvas.masked | edits

    @override
    def rewrite(self, stats: PositionStats, canvas: CanvasView) -> Rewrite:
        rewrite = self.drafted(stats, canvas) & ~canvas.masked & ~canvas.waits[:, None]
        full = ~canvas.masked.any(dim=1)
        post_steps = canvas.memory["post_steps"]
        post_steps += full
        more = post_steps < canvas.values["max_post_steps"]
        return Rewrite(rewrite, unfinished=more & (rewrite.any(dim=1) | ~full))
