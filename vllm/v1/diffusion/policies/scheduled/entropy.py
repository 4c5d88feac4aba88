# SPDX-License-Identifier: Apache-2.0
"""``entropy``: positions of lowest entropy, on Dream's timetable."""

import torch
from typing_extensions import override

from vllm.v1.diffusion.policies.base import PositionStats
from vllm.v1.diffusion.policies.scheduled.linear_time import LinearTimePolicy


class Entropy(LinearTimePolicy):
    """Unmasks a step's share of positions, the lowest entropies first (Dream)."""

    @override
    def score(self, stats: PositionStats) -> torch.Tensor:
        return -stats.entropy
