# SPDX-License-Identifier: Apache-2.0
"""Windows of bidirectional models: the whole canvas, or what the cache mode recomputes.

A window begins at 0, or at its block if the cache mode keeps what is before it. It ends with the canvas.
An answer longer than a canvas goes on in a further one, of which prompt and answer so far are the prompt.
Planned while a step is in flight that may finish the block, it is for the same block again: if that has
finished, the device makes nothing of it (``cache`` ``prefix`` and ``dual``), or denoises the next block,
whose window is the same (``none``) unless it is another canvas's.

A guided request's window goes on behind the canvas, to the end of a copy of it. The copy begins with a KV
block, so that its keys and values are its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from vllm.v1.diffusion.config import end_tokens, family_of
from vllm.v1.diffusion.core.plan import InFlight, RequestPlan
from vllm.v1.diffusion.core.planner import Share, Window, WindowPlanner
from vllm.v1.diffusion.modes.bidirectional import MORE_SEQUENCES
from vllm.v1.diffusion.request.blocks import copy_begin, more_parts
from vllm.v1.diffusion.request.decoding import CACHED, Decoding

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.diffusion.core.scheduler import DiffusionScheduler
    from vllm.v1.request import Request


class CanvasPlanner(WindowPlanner):
    """Plans windows over a canvas that begins where the prompt ends."""

    def __init__(self, scheduler: DiffusionScheduler, served: int) -> None:
        super().__init__(scheduler, served)
        # Windows are allocated as they are scheduled, canvas included.
        self.lookahead = 0
        self._end_tokens = end_tokens(scheduler.vllm_config.model_config)
        self._shifted = family_of(scheduler.vllm_config).shifted
        self._ends = self._end_tokens.union(scheduler.diffusion_config.end_token_ids or ())
        self._ignoring: set[str] = set()
        """Requests about to be planned for which an end token ends nothing."""
        self._more_sequences = 0
        """Sequences that the step has taken beside one for each request."""

    @override
    def begin_step(self, num_requests: int) -> None:
        self._more_sequences = 0

    @override
    def admit(self, request: Request) -> None:
        params = request.sampling_params
        assert params is not None
        if params.ignore_eos:
            self._ignoring.add(request.request_id)
        # A grammar ends with the end token, whatever the family's rule.
        if not self.scheduler.diffusion_config.stop_at_eos and params.structured_outputs is None:
            if not params.ignore_eos:
                # Upstream has added the generation config's; see keep_stop_tokens.
                stops = params.stop_token_ids or ()
                params.stop_token_ids = [token for token in stops if token not in self._end_tokens]
            params.ignore_eos = True
            params._eos_token_id = None

    @override
    def plan(self, request: Request, decoding: Decoding) -> RequestPlan:
        plan = super().plan(request, decoding)
        # Its first window holds all of them. A request that has a part keeps others from theirs.
        if decoding.guidance:
            plan.copy = copy_begin(plan.grid.limit, self.scheduler.vllm_config.cache_config.block_size)
            plan.more_sequences = 2
        if plan.elastic:
            plan.more_sequences = more_parts(decoding, plan.grid)
        plan.reserved = plan.copy + plan.grid.limit
        if plan.grid.canvas and request.request_id not in self._ignoring:
            plan.ends = self._ends
        self._ignoring.discard(request.request_id)
        # Inside a cached block the row that predicts its first position is not computed.
        plan.first_alone = self._shifted and decoding.cache in CACHED
        return plan

    def reads_prompt(self, request: Request, plan: RequestPlan) -> bool:
        """Never: prompt and canvas are one window."""
        return False

    @override
    def window(self, request: Request, plan: RequestPlan) -> Window | None:
        grid, cache = plan.grid, plan.decoding.cache
        known = plan.next_known(request.num_tokens)
        if known >= grid.limit:
            return None
        block_end, canvas_end = grid.end(known), grid.canvas_end(known)
        other_length = grid.end(block_end) - block_end != block_end - known or block_end == canvas_end
        if plan.may_have_finished and plan.decoding.constrained and other_length:
            # A grammar reads all rows of a step: they must be those of its block.
            return None
        if not self._takes_sequences(plan):
            return None
        if cache not in CACHED or plan.block != known:
            return Window(0, plan.copy + canvas_end)
        return Window(known, block_end if cache == "dual" else canvas_end)

    @override
    def round(self, request: Request, plan: RequestPlan, end: int, output: SchedulerOutput) -> Share:
        grid = plan.grid
        if end <= request.num_tokens:
            # Just admitted: take the canvas along, or wait for a step with room. One token is
            # computed in vain then: what upstream has admitted cannot be taken back.
            canvas_end = plan.copy + grid.canvas_end(request.num_tokens)
            room = self._takes_sequences(plan) and self.scheduler.extend(request, canvas_end, output)
            end = canvas_end if room else 1
        known = plan.next_known(request.num_tokens)
        return Share(end, grid.end(known) - known if end > 1 else 0)

    @override
    def emits(self, request: Request, plan: RequestPlan, count: int) -> None:
        if plan.elastic and count:  # The answer is as long as it has become.
            request.max_tokens = request.num_output_tokens + count

    def _takes_sequences(self, plan: RequestPlan) -> bool:
        """Whether a step has room for the sequences of a request's window, which it takes then."""
        if plan.more_sequences and self._more_sequences + plan.more_sequences > MORE_SEQUENCES:
            return False
        self._more_sequences += plan.more_sequences
        return True

    @override
    def denoised_nothing(self, plan: RequestPlan, window: InFlight, known: int) -> bool:
        behind = window.end - plan.copy < plan.grid.end(known)  # The window was that of the canvas before.
        return behind or (plan.decoding.cache in CACHED and window.block != known)

    @override
    def has_answered(self, request: Request, plan: RequestPlan) -> bool:
        """Whether a canvas has ended that holds an end token: no further one follows."""
        known, grid = request.num_tokens, plan.grid
        if not plan.ends or known >= grid.limit or grid.canvas_begin(known) != known:
            return False
        last = request.output_token_ids[grid.canvas_begin(known - 1) - request.num_prompt_tokens :]
        return not plan.ends.isdisjoint(last)
