# SPDX-License-Identifier: Apache-2.0
"""``entropy_distance``: positions of low entropy, the sooner the closer they are to the first mask."""

from typing import ClassVar

import torch
from typing_extensions import override

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import NotNegative, Parameter

ENTROPY_THRESHOLD = Parameter(
    "Entropy in nats below which a position is unmasked, with `entropy_distance` the penalty included; "
    "with `d3llm` also at it. With 0 a step of `entropy_distance` unmasks one position.",
    NotNegative,
    default=0.4,
)


class EntropyDistance(UnmaskingPolicy):
    """Unmasks positions whose entropy and distance are small, and the one of the least (WeDLM).

    A position's entropy in nats and ``position_penalty`` times its distance from the first mask are added.
    All positions below ``entropy_threshold`` are unmasked, and the lowest where none is.
    """

    numbers: ClassVar = {
        "entropy_threshold": ENTROPY_THRESHOLD,
        "position_penalty": Parameter(
            "What a position's distance from the first mask adds to its entropy, per token.",
            NotNegative,
            default=0.02,
            aliases=("pos_penalty_factor",),
        ),
    }

    @override
    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        columns = torch.arange(canvas.masked.shape[1], device=canvas.masked.device)
        first = canvas.masked.to(torch.int32).argmax(dim=1, keepdim=True)
        cost = stats.entropy + canvas.values["position_penalty"][:, None] * (columns - first)
        cost = cost.nan_to_num(nan=torch.finfo(cost.dtype).max).masked_fill(~canvas.masked, torch.inf)
        best = torch.zeros_like(canvas.masked).scatter_(1, cost.argmin(dim=1, keepdim=True), True)
        return canvas.masked & ((cost < canvas.values["entropy_threshold"][:, None]) | best)
