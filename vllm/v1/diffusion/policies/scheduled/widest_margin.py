# SPDX-License-Identifier: Apache-2.0
"""``widest_margin``: a fixed number of positions, those surest against the second best."""

import torch
from typing_extensions import override

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, ScheduledPolicy


class WidestMargin(ScheduledPolicy):
    """Unmasks the n positions of the widest gap between the two best tokens (DreamOn ``topk_margin``)."""

    @override
    def score(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        return stats.top1 - stats.top2
