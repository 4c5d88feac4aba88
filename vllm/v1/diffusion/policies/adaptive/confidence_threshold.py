# SPDX-License-Identifier: Apache-2.0
"""``confidence_threshold``: confident positions, but no faster than a schedule."""

from typing import ClassVar

import torch
from typing_extensions import override

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import THRESHOLD


class ConfidenceThreshold(UnmaskingPolicy):
    """Unmasks all at or above the threshold among the scheduled best, and the best (Fast-dLLM on Dream).

    The schedule allows ``block_length // steps`` more positions with every step; what the
    threshold held back stays allowed. Without ``steps`` everything is allowed at once.
    """

    uses_steps = True
    numbers: ClassVar = {"threshold": THRESHOLD}
    default_steps = 1

    @override
    def make_memory(self, requests: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        return {"masks": torch.zeros(requests, dtype=torch.int64, device=device)}

    @override
    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        confidence = stats.confidence.masked_fill(~canvas.masked, -torch.inf)
        rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        quota = (canvas.block_length // canvas.steps).clamp(min=1)
        # What a prompt or a template gives is no step's: the schedule counts from the block's first masks.
        masks, left = canvas.memory["masks"], canvas.masked.sum(dim=1)
        masks += torch.where(canvas.step == 0, left, 0)
        allowed = quota * (canvas.step + 1) - (masks - left)
        sure = (rank < allowed[:, None]) & (confidence >= canvas.values["threshold"][:, None])
        return canvas.masked & (sure | (rank == 0))
