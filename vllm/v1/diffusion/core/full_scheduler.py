# SPDX-License-Identifier: Apache-2.0
"""Schedules requests of bidirectional diffusion models.

Every position sees the prompt and the whole canvas, so nothing is computed for
good before a request ends. What a step recomputes is the cache mode's choice, as
Fast-dLLM (arXiv 2505.22618) names them: ``none`` everything; ``prefix`` everything
at a block's first step, then from the block on; ``dual`` everything at a block's
first step, then the block alone, its keys and values written into place.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.diffusion.config import end_tokens, family_of
from vllm.v1.diffusion.core.plan import DRAFT, CanvasPlan, set_window
from vllm.v1.diffusion.core.scheduler import DiffusionScheduler
from vllm.v1.diffusion.request.decoding import CACHED, Decoding
from vllm.v1.request import Request


class FullDiffusionScheduler(DiffusionScheduler):
    """Windows over the whole canvas, or over what the cache mode recomputes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Windows are allocated as they are scheduled, canvas included.
        self.num_lookahead_tokens = 0
        self._end_tokens = end_tokens(self.vllm_config.model_config)
        self._shifted = family_of(self.vllm_config).shifted

    def add_request(self, request: Request) -> None:
        """Admits a request; see upstream."""
        params = request.sampling_params
        assert params is not None
        # A grammar ends with the end token, whatever the family's rule.
        if not self.diffusion_config.stop_at_eos and params.structured_outputs is None:
            if not params.ignore_eos:
                # Upstream has added the generation config's; see keep_stop_tokens.
                stops = params.stop_token_ids or ()
                params.stop_token_ids = [token for token in stops if token not in self._end_tokens]
            params.ignore_eos = True
            params._eos_token_id = None
        super().add_request(request)

    def _has_whole_chunks_left(self, request: Request) -> bool:
        return False

    def _new_plan(self, request: Request, decoding: Decoding) -> CanvasPlan:
        end = min(request.num_prompt_tokens + request.max_tokens, self.max_model_len)
        return CanvasPlan(
            decoding.within(end - request.num_prompt_tokens),
            canvas_end=end,
            first_alone=self._shifted and decoding.cache in CACHED,
        )

    def _plan_window(self, request: Request) -> int | None:
        plan = self._plan_of(request)
        request.spec_token_ids = []
        window = plan.next_window(request.num_tokens) if len(plan.windows) < 2 else None
        if window is None:
            return None
        start, end = window
        request.num_computed_tokens = start
        request.spec_token_ids = [DRAFT] * (end - request.num_tokens)
        return end - start

    def _round_window(self, request_id: str, output: SchedulerOutput) -> int:
        request = self.requests[request_id]
        plan = self._plan_of(request)
        start = request.num_computed_tokens
        end = start + output.num_scheduled_tokens[request_id]
        if end <= request.num_tokens:
            # Just admitted: take the canvas along, or wait for a step with room.
            end = self._admit(request, plan.canvas_end, output)
        known = plan.next_known(request.num_tokens)
        set_window(output, request_id, end - start, plan.window_end(known) - known if end > 1 else 0)
        return end

    def _plan_of(self, request: Request) -> CanvasPlan:
        plan = self._plans[request.request_id]
        assert isinstance(plan, CanvasPlan)
        return plan

    def _admit(self, request: Request, end: int, output: SchedulerOutput) -> int:
        """Extends a new request's window to its whole canvas; its end.

        Where that does not fit, one token is computed in vain: what upstream has
        admitted cannot be taken back.
        """
        request_id = request.request_id
        others = output.total_num_scheduled_tokens - output.num_scheduled_tokens[request_id]
        if others + end > self.max_num_scheduled_tokens:
            return 1
        if self.kv_cache_manager.allocate_slots(request, end) is None:
            return 1
        for data in output.scheduled_new_reqs:
            if data.req_id == request_id:
                data.block_ids = self.kv_cache_manager.get_block_ids(request_id)
        return end
