# SPDX-License-Identifier: Apache-2.0
"""``least_entropy``: a fixed number of positions, those of lowest entropy."""

import torch
from typing_extensions import override

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, ScheduledPolicy


class LeastEntropy(ScheduledPolicy):
    """Unmasks the n positions of lowest entropy (DreamOn ``entropy``)."""

    @override
    def score(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        return -stats.entropy
