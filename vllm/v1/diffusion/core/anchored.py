# SPDX-License-Identifier: Apache-2.0
"""Windows where a finished block is run again by a pass of its own.

The pass makes the block's keys and values final. It may also make a token: in Fast-dLLM v2 a
block's first token is the prediction behind the finished blocks. Such a pass, an *anchor*, has one
row of logits and emits one token. The passes after it denoise the rest of the block. So a block
costs one pass more than its denoising steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from vllm.v1.diffusion.core.causal import BlockPlanner
from vllm.v1.diffusion.core.plan import InFlight, RequestPlan
from vllm.v1.diffusion.core.planner import Share, Window

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


class AnchoredPlanner(BlockPlanner):
    """Commits wherever the known tokens are whole blocks that are not computed yet."""

    commit_rows: ClassVar[int] = 1
    """Rows of logits of the pass that commits: 1 for one that makes the next block's first token."""

    @override
    def window(self, request: Request, plan: RequestPlan) -> Window | None:
        if self._commits(request, plan):
            return Window(request.num_computed_tokens, request.num_tokens)
        return super().window(request, plan)

    @override
    def round(self, request: Request, plan: RequestPlan, end: int, output: SchedulerOutput) -> Share:
        if end == request.num_tokens and self._commits(request, plan):
            return Share(end, self.commit_rows)
        return super().round(request, plan, end, output)

    @override
    def is_anchor(self, plan: RequestPlan, window: InFlight, known: int) -> bool:
        return window.end == known

    def _commits(self, request: Request, plan: RequestPlan) -> bool:
        """Whether all that is known are whole blocks, and some of them not computed."""
        known = request.num_tokens
        return plan.grid.starts_block(known) and request.num_computed_tokens < known
