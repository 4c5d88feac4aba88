# SPDX-License-Identifier: Apache-2.0
"""``topk_margin``: positions that are surest against the second best, on Dream's timetable."""

import torch
from typing_extensions import override

from vllm.v1.diffusion.policies.base import PositionStats
from vllm.v1.diffusion.policies.scheduled.linear_time import LinearTimePolicy


class TopkMargin(LinearTimePolicy):
    """Unmasks a step's share of positions, by top probability less the second (Dream)."""

    @override
    def score(self, stats: PositionStats) -> torch.Tensor:
        return stats.top1 - stats.top2
