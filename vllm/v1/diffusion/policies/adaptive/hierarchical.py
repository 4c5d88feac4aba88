# SPDX-License-Identifier: Apache-2.0
"""``hierarchical``: the best of every run of masks, so that runs split evenly."""

from typing import ClassVar

import torch
from typing_extensions import override

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import THRESHOLD, Parameter, Share


class Hierarchical(UnmaskingPolicy):
    """Unmasks all above the threshold, the best of each masked run above a lower one, and the best (dInfer).

    A run is a stretch of neighbouring masked positions.
    """

    numbers: ClassVar = {
        "threshold": THRESHOLD,
        "low_threshold": Parameter(
            "Confidence above which the best position of a run of masks is unmasked.", Share, default=0.4
        ),
    }

    @override
    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        masked = canvas.masked
        confidence = torch.where(masked, stats.confidence, -1.0)
        starts = masked.clone()
        starts[:, 1:] &= ~masked[:, :-1]
        run = starts.cumsum(dim=1)  # Positions between two runs share a number with the one before.
        highest = torch.full((len(masked), masked.shape[1] + 1), -1.0, device=masked.device)
        highest = highest.scatter_reduce(1, run, confidence, "amax")
        best = masked & (confidence == highest.gather(1, run))
        best &= confidence > canvas.values["low_threshold"][:, None]
        best |= confidence > canvas.values["threshold"][:, None]
        return best.scatter(1, confidence.argmax(dim=1, keepdim=True), True)
