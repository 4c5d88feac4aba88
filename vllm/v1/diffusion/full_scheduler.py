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
from vllm.v1.diffusion.config import end_tokens
from vllm.v1.diffusion.scheduler import DRAFT, DiffusionScheduler, set_window
from vllm.v1.diffusion.window import InFlight, Outcome, RequestPlan
from vllm.v1.request import Request


class FullDiffusionScheduler(DiffusionScheduler):
    """Windows over the whole canvas, or over what the cache mode recomputes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Windows are allocated as they are scheduled, canvas included.
        self.num_lookahead_tokens = 0
        self._end_tokens = end_tokens(self.vllm_config.model_config)

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

    def _canvas_end(self, request: Request) -> int:
        return min(request.num_prompt_tokens + request.max_tokens, self.max_model_len)

    def _block_end(self, request: Request, plan: RequestPlan) -> int:
        return min(request.num_tokens + plan.block_length, self._canvas_end(request))

    def _plan_window(self, request: Request) -> int | None:
        plan = self._plans[request.request_id]
        start, end = 0, self._canvas_end(request)
        cache = plan.decoding.cache
        if plan.block == request.num_tokens and cache != "none":
            start = request.num_tokens
            if cache == "dual":
                end = self._block_end(request, plan)
        request.num_computed_tokens = start
        request.spec_token_ids = [DRAFT] * (end - request.num_tokens)
        return end - start

    def _round_window(self, request_id: str, output: SchedulerOutput) -> int:
        request, plan = self.requests[request_id], self._plans[request_id]
        start = request.num_computed_tokens
        end = start + output.num_scheduled_tokens[request_id]
        if end <= request.num_tokens:
            # Just admitted: take the canvas along, or wait for a step with room.
            end = self._admit(request, output)
        rows = self._block_end(request, plan) - request.num_tokens
        set_window(output, request_id, end - start, rows if end > 1 else 0)
        return end

    def _admit(self, request: Request, output: SchedulerOutput) -> int:
        """Extends a new request's window to its whole canvas; its end.

        Where that does not fit, one token is computed in vain: what upstream has
        admitted cannot be taken back.
        """
        request_id = request.request_id
        end = self._canvas_end(request)
        others = output.total_num_scheduled_tokens - output.num_scheduled_tokens[request_id]
        if others + end > self.max_num_scheduled_tokens:
            return 1
        if self.kv_cache_manager.allocate_slots(request, end) is None:
            return 1
        for data in output.scheduled_new_reqs:
            if data.req_id == request_id:
                data.block_ids = self.kv_cache_manager.get_block_ids(request_id)
        return end

    def _record_window(self, request: Request, end: int, denoises: bool) -> None:
        plan = self._plans[request.request_id]
        if denoises:
            plan.block = request.num_tokens
        plan.windows.append(InFlight(end, Outcome.UNKNOWN))
        request.num_computed_tokens = 0
