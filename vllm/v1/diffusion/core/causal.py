# SPDX-License-Identifier: Apache-2.0
"""Windows of block-causal models.

A window is the known tokens that are not computed yet and the open block. It begins with a
block, since a position's keys and values depend on all of its block. A block's tokens are emitted
as soon as its last mask is gone; its keys and values are written by the window of the next block,
so a commit costs no forward pass of its own and a finished request never pays for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from vllm.platforms import current_platform
from vllm.v1.diffusion.core.plan import RequestPlan
from vllm.v1.diffusion.core.planner import Share, Window, WindowPlanner
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.request.row_budget import step_rows

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.diffusion.core.scheduler import DiffusionScheduler
    from vllm.v1.request import Request

_FREE_ROWS = 256
"""Rows of a step that cost a GPU nothing, since it is busy reading the weights."""


class BlockPlanner(WindowPlanner):
    """Plans windows of whole blocks.

    Raises:
        ValueError: Cached prefixes would end inside a block.
    """

    def __init__(self, scheduler: DiffusionScheduler, served: int) -> None:
        super().__init__(scheduler, served)
        self.check_prefix_cache(served)
        self._free_rows = 0 if current_platform.is_cpu() else _FREE_ROWS
        self._plans_two_blocks = False

    def check_prefix_cache(self, served: int) -> None:
        """Refuses cached prefixes that end inside a block: their keys depend on what follows."""
        scheduler = self.scheduler
        if scheduler.cache_config.enable_prefix_caching and scheduler.hash_block_size % served:
            raise ValueError(
                f"block_length={served} does not divide the KV-cache block of "
                f"{scheduler.hash_block_size} tokens, so cached prefixes would end inside "
                "a block. Set --block-size to a multiple of it, or "
                "--no-enable-prefix-caching."
            )

    @override
    def begin_step(self, num_requests: int) -> None:
        self._plans_two_blocks = 2 * self.lookahead * num_requests <= self._free_rows

    def reads_prompt(self, request: Request, plan: RequestPlan) -> bool:
        """Whether more than the last block of the prompt is uncomputed: chunks may be cut, that not."""
        return request.num_computed_tokens < plan.grid.begin(request.num_tokens)

    @override
    def window(self, request: Request, plan: RequestPlan) -> Window | None:
        now_known = request.num_tokens
        known = plan.next_known(now_known)
        if known != now_known and not self._goes_on(request, known):
            return None
        end = plan.grid.reach(known)
        whole = plan.decoding.row_candidates is None
        if (
            whole
            and self._plans_two_blocks
            and plan.may_have_finished
            and self._wants_more(request, plan, end)
        ):
            # The worker denoises whichever of the two blocks is open.
            end = plan.grid.reach(end)
        return Window(request.num_computed_tokens, end)

    @override
    def round(self, request: Request, plan: RequestPlan, end: int, output: SchedulerOutput) -> Share:
        start, known, grid = request.num_computed_tokens, request.num_tokens, plan.grid
        if end == known:
            # The prompt's last chunk takes the first denoising step along.
            wanted = grid.reach(known)
            room = self.scheduler.max_num_scheduled_tokens - output.total_num_scheduled_tokens
            if wanted - end <= room:
                end = wanted
        elif end < known and grid.begin(end) > start:
            end = grid.begin(end)
        if end <= known or not (grid.starts_block(end) or end == grid.limit):
            return Share(end, 0)
        known = plan.next_known(known)
        begin, block_end = grid.begin(known), grid.reach(known)
        if plan.decoding.row_candidates is not None and start == begin == plan.block:
            # Not the block's first step, which also commits the block before.
            computed = step_rows(plan.decoding, plan.step, block_end - known, block_end - begin)
            return Share(end, computed.candidates, computed.rows)
        return Share(end, block_end - begin)

    def _goes_on(self, request: Request, known: int) -> bool:
        """Whether a request wants tokens behind ``known`` ones."""
        wanted = known - request.num_prompt_tokens < request.max_tokens
        return wanted and known < self.scheduler.max_model_len

    def _wants_more(self, request: Request, plan: RequestPlan, end: int) -> bool:
        """Whether there is a block behind the one that ends at ``end``, as long as that."""
        room = end + plan.block_length <= min(self.scheduler.max_model_len, plan.grid.limit)
        return room and end - request.num_prompt_tokens < request.max_tokens


class ShiftedPlanner(BlockPlanner):
    """The same where each window begins with the token before the open block, whose row predicts."""

    @override
    def reads_prompt(self, request: Request, plan: RequestPlan) -> bool:
        return request.num_computed_tokens < plan.grid.begin(request.num_tokens) - 1


class OpenBlocksPlanner(BlockPlanner):
    """The same with several open blocks of a request: a window ends with the last block that may be open.

    One step of a request at a time: which blocks a step finishes is known when it has been made.
    """

    def __init__(self, scheduler: DiffusionScheduler, served: int) -> None:
        super().__init__(scheduler, served)
        self.lookahead = scheduler.mode.blocks.open_blocks * served


class VerifiedPlanner(BlockPlanner):
    """The same with as many rows behind the block of a request that speculates, where the context goes on.

    One step of a request at a time: what a step computes depends on the one before it.
    """

    def __init__(self, scheduler: DiffusionScheduler, served: int) -> None:
        super().__init__(scheduler, served)
        self.lookahead = 2 * served

    @override
    def cache_salt(self, request: Request, decoding: Decoding) -> str | None:
        salt = super().cache_salt(request, decoding)
        by_token = decoding.values.get("causal_cache")
        return f"{salt or ''}|diffusion_causal_cache" if by_token else salt

    @override
    def window(self, request: Request, plan: RequestPlan) -> Window | None:
        window = super().window(request, plan)
        if window is None or not plan.decoding.speculates:
            return window
        return Window(window.begin, self._widened(plan, window.end))

    @override
    def round(self, request: Request, plan: RequestPlan, end: int, output: SchedulerOutput) -> Share:
        if not plan.decoding.speculates:
            return super().round(request, plan, end, output)
        known, grid = request.num_tokens, plan.grid
        reach = grid.reach(known)
        wanted = self._widened(plan, reach)
        if end == known < wanted:
            room = self.scheduler.max_num_scheduled_tokens - output.total_num_scheduled_tokens
            end = wanted if wanted - end <= room else end
        elif end < known and grid.begin(end) > request.num_computed_tokens:
            end = grid.begin(end)
        return Share(end, reach - grid.begin(known) if end == wanted else 0)

    def _widened(self, plan: RequestPlan, end: int) -> int:
        """Where the window of a block ends that ends at ``end``."""
        wide = end + plan.block_length
        return wide if wide <= self.scheduler.max_model_len else end
