# SPDX-License-Identifier: Apache-2.0
"""``random``: a fixed number of positions, drawn at random."""

import torch
from typing_extensions import override

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, ScheduledPolicy
from vllm.v1.diffusion.policies.noise import uniform


class Random(ScheduledPolicy):
    """Unmasks n positions drawn at random (LLaDA ``remasking="random"``)."""

    @override
    def score(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        return uniform(canvas.seed[:, None], canvas.position, canvas.step[:, None])
