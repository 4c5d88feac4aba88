# SPDX-License-Identifier: Apache-2.0
"""Windows over a causal context: known tokens that are not final yet, or the open block, never both.

A pass over known tokens makes their keys and values final. Where blocks begin with a seed, its
last row is the next block's first token. A request that verifies drafts has no grid: its block begins
at its last token, which no pass has made final, and one window serves to draft and to verify.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from typing_extensions import override

from vllm.v1.diffusion.core.anchored import AnchoredPlanner
from vllm.v1.diffusion.core.plan import RequestPlan
from vllm.v1.diffusion.core.planner import Share, Window
from vllm.v1.diffusion.modes.grid import BlockGrid
from vllm.v1.diffusion.request.decoding import Decoding

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


def by_token(grid: BlockGrid, window_end: int, known: int) -> int:
    """Known tokens before the open block are final as soon as a causal pass has computed them."""
    return min(window_end, grid.begin(known))


def by_context(grid: BlockGrid, window_end: int, known: int) -> int:
    """A prompt that sees all of itself is final as a whole; so is each block."""
    return min(window_end, grid.begin(known)) if window_end >= grid.origin else 0


def but_the_last(grid: BlockGrid, window_end: int, known: int) -> int:
    """All tokens are final but the answer's last one, with which the next draft begins."""
    return min(window_end, known if known <= grid.origin else known - 1)


class SeededPlanner(AnchoredPlanner):
    """Commits, then denoises; drafts and verifies where a request asks for it."""

    @override
    def check_prefix_cache(self, served: int) -> None:
        """What is cached is causal by token, so a prefix may end anywhere."""

    @override
    def plan(self, request: Request, decoding: Decoding) -> RequestPlan:
        plan = super().plan(request, decoding)
        final = but_the_last if decoding.verifies else by_token if decoding.causal else by_context
        plan.grid = replace(plan.grid, final=final)
        return plan

    @override
    def cache_salt(self, request: Request, decoding: Decoding) -> str | None:
        # A prompt that sees itself has keys of its own, whatever it begins with.
        return None if decoding.causal else f"diffusion_causal_context={request.request_id}"

    @override
    def reads_prompt(self, request: Request, plan: RequestPlan) -> bool:
        return plan.decoding.causal and request.num_computed_tokens < self._begin(request, plan)

    @override
    def window(self, request: Request, plan: RequestPlan) -> Window | None:
        if plan.windows:
            return None
        begin, computed = self._begin(request, plan), request.num_computed_tokens
        if computed < begin:
            return Window(computed, self._commit_end(request, plan, begin))
        return Window(begin, self._end(plan, begin))

    @override
    def round(self, request: Request, plan: RequestPlan, end: int, output: SchedulerOutput) -> Share:
        begin, known = self._begin(request, plan), request.num_tokens
        if request.num_computed_tokens < begin:
            end = min(end, self._commit_end(request, plan, begin))
            seeds = end == known and (plan.decoding.seeded or plan.decoding.verifies)
            return Share(end, self.commit_rows if seeds else 0)
        wanted = self._end(plan, begin)
        room = self.scheduler.max_num_scheduled_tokens - output.total_num_scheduled_tokens
        if wanted - end > room:
            # Admitted anew, with all before the block cached: the block waits for room.
            return Share(end, 0)
        return Share(wanted, wanted - begin)

    def _begin(self, request: Request, plan: RequestPlan) -> int:
        """Where the open block begins, which is denoised or drafted next."""
        known, grid = request.num_tokens, plan.grid
        if plan.decoding.verifies:
            return known if known <= grid.origin else known - 1
        return grid.begin(known)

    def _commit_end(self, request: Request, plan: RequestPlan, begin: int) -> int:
        """Where a pass over known tokens ends at the latest; ``begin`` is where the open block does.

        What sees all of itself is one window: the prompt, then each block.
        """
        computed, grid = request.num_computed_tokens, plan.grid
        if plan.decoding.causal:
            return begin
        return grid.origin if computed < grid.origin else min(computed + grid.block_length, begin)

    def _end(self, plan: RequestPlan, begin: int) -> int:
        """Where a block that begins at ``begin`` ends: with the context at the latest."""
        return min(begin + plan.block_length, plan.grid.limit)
