# SPDX-License-Identifier: Apache-2.0
"""What Dream's policies share: its timetable, and how it takes the best positions.

As in the published ``generation_utils.py`` (Dream 7B, arXiv 2508.15487): time falls
linearly from 1 to ``eps`` over a block's steps, and a step from time t to time s unmasks
the share ``1 - s / t`` of what is masked, all in the last step. A share of less than one
position unmasks nothing. The published code makes these steps, its golden cases count them, and
so does this one: a request's steps are what it asked for.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from typing_extensions import override

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, UnmaskingPolicy
from vllm.v1.diffusion.policies.noise import gumbel
from vllm.v1.diffusion.policies.parameter import NotNegative, Parameter, Positive

END_TIME = Parameter(
    "Time at which the timetable of Dream's algorithms ends.",
    Annotated[Positive, Field(le=1)],
    default=1e-3,
    aliases=("eps",),
)
"""Where the timetable ends; published as ``eps``."""


class LinearTimePolicy(UnmaskingPolicy):
    """Unmasks the share of a step, those of highest score.

    With ``position_temperature`` above 0 the positions are drawn, without replacement, from
    ``softmax(score / position_temperature)`` over the masked positions.
    """

    uses_steps = True
    numbers: ClassVar = {
        "position_temperature": Parameter(
            "Positions are drawn by their score at this temperature; 0 takes the best.",
            NotNegative,
            default=0,
            aliases=("alg_temperature",),
        ),
        "end_time": END_TIME,
    }

    def score(self, stats: PositionStats) -> torch.Tensor:
        """How sure the model is of every position, float ``[requests, width]``."""
        raise NotImplementedError

    @override
    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        score = self.score(stats)
        if any(canvas.host_values["position_temperature"]):
            score = score.double()
            temperature = canvas.values["position_temperature"][:, None].double()
            noise = gumbel(canvas.seed[:, None], canvas.position, canvas.step[:, None])
            score = torch.where(temperature > 0, score / temperature.clamp(min=1e-12) + noise, score)
        order = score.masked_fill(~canvas.masked, -torch.inf).argsort(dim=1, descending=True, stable=True)
        # Where each position comes in that order.
        rank = order.argsort(dim=1)
        masked = canvas.masked.sum(dim=1)
        count = (masked * share(canvas)).to(torch.int64)
        count = torch.where(canvas.step + 1 >= canvas.steps, masked, count)
        return canvas.masked & (rank < count[:, None])

    def steps_left(self, masked: int, step: int, steps: int, block_length: int) -> int | None:
        """Steps up to the last one: a share is never all, but in that step."""
        return max(steps - step, 1) if masked else 0


def share(canvas: CanvasView) -> torch.Tensor:
    """The share of masked positions that the step unmasks, float32 ``[requests]``."""
    # Every process names policies, also those that have no use for the compiled operators.
    from vllm.v1.diffusion.kernels.timetable import timetable

    return timetable(canvas.step, canvas.steps, canvas.values["end_time"])
