# SPDX-License-Identifier: Apache-2.0
"""``origin``: positions at random, on Dream's timetable."""

from typing import ClassVar

import torch
from typing_extensions import override

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, UnmaskingPolicy
from vllm.v1.diffusion.policies.noise import uniform
from vllm.v1.diffusion.policies.scheduled.linear_time import END_TIME, share


class Origin(UnmaskingPolicy):
    """Unmasks each position with the step's share as probability (Dream's default)."""

    uses_steps = True
    numbers: ClassVar = {"end_time": END_TIME}

    @override
    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        last = canvas.step + 1 >= canvas.steps
        drawn = uniform(canvas.seed[:, None], canvas.position, canvas.step[:, None])
        return canvas.masked & ((drawn < share(canvas)[:, None]) | last[:, None])
