# SPDX-License-Identifier: Apache-2.0
"""``edit``: unmasked tokens are rewritten while the model is sure of others."""

from typing import ClassVar

import torch
from typing_extensions import override

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, Rewrite, UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import THRESHOLD, Count, Parameter, Share

EDIT_THRESHOLD = Parameter(
    "Probability above which an unmasked token is rewritten.",
    Share,
    default=0.9,
    otherwise="`--diffusion-config`, else 0.9; 0 for LLaDA2.2",
)
MAX_POST_STEPS = Parameter(
    "Steps that a block may take after its last mask, to rewrite tokens; with `insert_delete` 256 at most, "
    "counted from the last mask that the block began with.",
    Count,
    default=16,
)


class Edit(UnmaskingPolicy):
    """Unmasks all above the threshold, else the best, and rewrites unmasked tokens (LLaDA2.1).

    An unmasked token of the open block is rewritten where another is proposed with a probability
    above ``edit_threshold``. Once no mask is left, the block takes further steps until one of
    them rewrites nothing, at most ``max_post_steps``. A prompt's tokens stay.
    """

    numbers: ClassVar = {
        "threshold": THRESHOLD,
        "edit_threshold": EDIT_THRESHOLD,
        "max_post_steps": MAX_POST_STEPS,
    }

    @override
    def make_memory(self, requests: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        return {"post_steps": torch.zeros(requests, dtype=torch.int32, device=device)}

    @override
    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        confidence = torch.where(canvas.masked, stats.confidence, -1.0)
        unmask = confidence > canvas.values["threshold"][:, None]
        best = torch.zeros_like(unmask).scatter_(1, confidence.argmax(dim=1, keepdim=True), True)
        return torch.where(unmask.any(dim=1, keepdim=True), unmask, best)

    @override
    def rewrite(self, stats: PositionStats, canvas: CanvasView) -> Rewrite:
        rewrite = canvas.unmasked & (stats.token != canvas.tokens)
        rewrite &= stats.confidence > canvas.values["edit_threshold"][:, None]
        full = ~canvas.masked.any(dim=1)
        post_steps = canvas.memory["post_steps"]
        post_steps += full
        more = post_steps < canvas.values["max_post_steps"]
        return Rewrite(rewrite, unfinished=more & (rewrite.any(dim=1) | ~full))
