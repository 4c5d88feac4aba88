# SPDX-License-Identifier: Apache-2.0
"""Windows of known tokens, which pass causally, and the canvas behind them.

Keys and values of every known token are final once computed, so prompts are cut anywhere. A finished
canvas is computed by the window that takes the next canvas's first step along: a commit costs no
forward pass of its own, and a finished request never pays for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from vllm.v1.diffusion.core.plan import RequestPlan
from vllm.v1.diffusion.core.planner import Share, Window, WindowPlanner

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


class RenoisingPlanner(WindowPlanner):
    """Plans what is known and not computed, with the canvas as a whole."""

    def reads_prompt(self, request: Request, plan: RequestPlan) -> bool:
        """Whether known tokens are uncomputed: chunks may be cut, the canvas not."""
        return request.num_computed_tokens < request.num_tokens

    @override
    def window(self, request: Request, plan: RequestPlan) -> Window | None:
        if plan.windows:
            return None  # Only the step in flight knows whether the canvas goes on.
        return Window(request.num_computed_tokens, plan.grid.end(request.num_tokens))

    @override
    def round(self, request: Request, plan: RequestPlan, end: int, output: SchedulerOutput) -> Share:
        known = request.num_tokens
        wanted = plan.grid.end(known)
        if known <= end < wanted:
            # The last known tokens take the canvas's first step along, or go without it.
            room = self.scheduler.max_num_scheduled_tokens - output.total_num_scheduled_tokens
            end = wanted if wanted - end <= room else max(known, request.num_computed_tokens + 1)
        return Share(end, wanted - known if end == wanted else 0)
