# SPDX-License-Identifier: Apache-2.0
"""``local_leap``: a fixed number of positions, and what the model is fairly sure of near the surest."""

from typing import ClassVar

import torch
from typing_extensions import override

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import Count, Parameter, Share


class LocalLeap(UnmaskingPolicy):
    """Unmasks the scheduled most confident positions, and confident neighbours of anchors (LocalLeap).

    Those of the scheduled positions that reach ``anchor_threshold`` are anchors. Masks within ``radius``
    of an anchor that reach ``neighbor_threshold`` are unmasked too. The schedule is that of
    ``low_confidence_static``; a block ends as soon as it is full.
    """

    uses_steps = True
    numbers: ClassVar = {
        "anchor_threshold": Parameter(
            "Confidence from which a position that the schedule unmasks is an anchor.", Share, default=0.9
        ),
        "neighbor_threshold": Parameter(
            "Confidence from which a mask near an anchor is unmasked with it.", Share, default=0.75
        ),
        "radius": Parameter("How far from an anchor a mask may be, in tokens.", Count, default=4),
    }

    @override
    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        values, width = canvas.values, canvas.masked.shape[1]
        confidence = stats.confidence.masked_fill(~canvas.masked, -torch.inf)
        rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        count = canvas.block_length // canvas.steps
        count = (count + (canvas.step < canvas.block_length % canvas.steps)).clamp(min=1)
        best = canvas.masked & (rank < count[:, None])
        anchors = best & (confidence >= values["anchor_threshold"][:, None])
        # Anchors before each position: their number in a window is a difference of two of these.
        before = torch.nn.functional.pad(anchors.cumsum(dim=1), (1, 0))
        columns, radius = torch.arange(width, device=before.device), values["radius"].to(torch.int64)[:, None]
        begin, end = (columns - radius).clamp(min=0), (columns + radius + 1).clamp(max=width)
        near = before.gather(1, end) > before.gather(1, begin)
        return best | (near & (confidence >= values["neighbor_threshold"][:, None]))
