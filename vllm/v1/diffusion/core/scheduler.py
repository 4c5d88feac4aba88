# SPDX-License-Identifier: Apache-2.0
"""Schedules block-causal diffusion requests.

The canvas travels on upstream's speculative-decoding path: a window is the known
tokens that are not computed yet plus draft tokens up to the end of the block. A
block's tokens are emitted as soon as its last mask is filled; its keys and values
are written by the window of the next block, so a commit costs no forward pass of
its own and a finished request never pays for one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.sched.output import GrammarOutput, NewRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.diffusion.config import resolve_diffusion_config
from vllm.v1.diffusion.core.counts import DenoisingRecord
from vllm.v1.diffusion.core.failed_requests import failed_requests
from vllm.v1.diffusion.core.held_blocks import HeldSlots
from vllm.v1.diffusion.core.plan import DRAFT, RequestPlan, block_start, set_window
from vllm.v1.diffusion.message.request_data import described
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.request.resolve import resolve_decoding
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics, SchedulerStats
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.spec_decode.metrics import SpecDecodingStats

_FREE_ROWS = 256
"""Rows of a step that cost a GPU nothing, since it is busy reading the weights."""


class DiffusionScheduler(Scheduler):
    """Upstream's scheduler with windows of whole blocks; sync and async.

    Raises:
        ValueError: The sizes of cache blocks, diffusion blocks and batches do
            not fit together.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.diffusion_config = resolve_diffusion_config(self.vllm_config)
        served = self.diffusion_config.block_length
        assert served is not None
        if self.cache_config.enable_prefix_caching and self.hash_block_size % served:
            raise ValueError(
                f"block_length={served} does not divide the KV-cache block of "
                f"{self.hash_block_size} tokens, so cached prefixes would end inside "
                "a block. Set --block-size to a multiple of it, or "
                "--no-enable-prefix-caching."
            )
        # No token is sampled beside the canvas, and every window may run to the
        # end of a block that is not there yet.
        self.num_sampled_tokens_per_step = 0
        self.num_lookahead_tokens = served
        self._plans: dict[str, RequestPlan] = {}
        if len(self.kv_cache_config.kv_cache_groups) == 1:
            slots = HeldSlots(self.kv_cache_manager, self._plans, self.hash_block_size)
            self.kv_cache_manager.allocate_slots = slots  # type: ignore[method-assign,assignment]
        self._free_rows = 0 if current_platform.is_cpu() else _FREE_ROWS
        self._plans_two_blocks = False
        self._stages = self.parallel_config.pipeline_parallel_size
        self._record = DenoisingRecord(self.num_spec_tokens, self.log_stats)

    # ---- requests come and go ------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Admits a request; see upstream."""
        decoding = resolve_decoding(request.sampling_params, self.diffusion_config)
        plan = self._plans[request.request_id] = self._new_plan(request, decoding)
        if (structured := request.structured_output_request) is not None:
            plan.reasoning_ended = structured.reasoning_ended
        if decoding.block_length != self.diffusion_config.block_length:
            # The prompt's keys and values depend on the block length.
            salt = f"diffusion_block_length={decoding.block_length}"
            request.cache_salt = f"{request.cache_salt or ''}|{salt}"
            request.block_hashes.clear()
            request.update_block_hashes()
        # No speculation: a response then shows nothing in its terms.
        request.spec_decode_metrics = RequestSpecDecodeMetrics(
            num_spec_tokens=0, histogram=[0] * (self.num_spec_tokens + 1)
        )
        super().add_request(request)

    def _new_plan(self, request: Request, decoding: Decoding) -> RequestPlan:
        return RequestPlan(decoding)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        plan = self._plans.pop(request.request_id, None)
        if plan:
            self._record.ended(request, plan)
        return super()._free_request(request, *args, **kwargs)

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self._plans[request.request_id].forget()
        super()._preempt_request(request, *args, **kwargs)

    # ---- plan a step ---------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        """Plans one window a request, then lets upstream schedule them."""
        budget = self.max_num_scheduled_tokens
        widest = 2 * self.num_lookahead_tokens * (len(self.running) + len(self.waiting))
        self._plans_two_blocks = widest <= self._free_rows
        postponed = []
        for request in self.running:
            if request.is_prefill_chunk and self._has_whole_chunks_left(request):
                # The prompt may be cut; only the last chunk is planned as a whole.
                request.spec_token_ids = []
                left = request.num_tokens - request.num_computed_tokens
                budget -= min(left, budget)
                continue
            away = self._stages > 1 and self._on_its_way(request)
            needed = None if away else self._plan_window(request)
            if needed is not None and needed > budget:
                needed = None
                postponed.append(request)
            if needed is None:
                # schedule() advances current_step first: skipped this once.
                request.spec_token_ids = []
                later = max(request.next_decode_eligible_step, self.current_step + 2)
                request.next_decode_eligible_step = later
            else:
                budget -= needed
        output = super().schedule(*args, **kwargs)
        output.scheduled_new_reqs = [self._described(data) for data in output.scheduled_new_reqs]
        if postponed:
            # First come first next time: windows are never cut to fit a budget.
            still = [r for r in postponed if r in self.running]
            self.running = still + [r for r in self.running if r not in still]
        return output

    def _on_its_way(self, request: Request) -> bool:
        """Whether a stage of a pipeline has yet to be told what a step made of the canvas."""
        plan = self._plans[request.request_id]
        return bool(plan.windows) or self.current_step + 1 < request.next_decode_eligible_step

    def _described(self, data: NewRequestData) -> NewRequestData:
        structured = self.requests[data.req_id].structured_output_request
        return described(data, structured, self._plans[data.req_id].reasoning_ended)

    def _has_whole_chunks_left(self, request: Request) -> bool:
        """Whether more of a prompt that may be cut than its last block is uncomputed."""
        length = self._plans[request.request_id].block_length
        return request.num_computed_tokens < block_start(request.num_tokens, length)

    def _plan_window(self, request: Request) -> int | None:
        """Sets a running request's draft tokens.

        Returns:
            Tokens that the window needs as a whole, or None to skip the request
            this step.
        """
        plan = self._plans[request.request_id]
        request.spec_token_ids = []
        if len(plan.windows) > 1:
            return None
        now_known = request.num_tokens
        known = plan.next_known(now_known)
        if known != now_known and (
            known - request.num_prompt_tokens >= request.max_tokens or known >= self.max_model_len
        ):
            return None
        end = plan.window_end(known)
        if self._plans_two_blocks and plan.may_have_finished and self._wants_more(request, end):
            # The worker denoises whichever of the two blocks is open.
            end = plan.window_end(end)
        request.spec_token_ids = [DRAFT] * (end - now_known)
        return end - request.num_computed_tokens

    def _wants_more(self, request: Request, end: int) -> bool:
        """Whether there is a block behind the one that ends at ``end``."""
        wanted = end - request.num_prompt_tokens < request.max_tokens
        return wanted and end + self._plans[request.request_id].block_length <= self.max_model_len

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        """Rounds what upstream scheduled to whole blocks and records it."""
        requests = self.requests
        ends = [
            (requests[request_id], self._round_window(request_id, scheduler_output))
            for request_id in scheduler_output.num_scheduled_tokens
        ]
        super()._update_after_schedule(scheduler_output)
        denoising = scheduler_output.scheduled_spec_decode_tokens
        for request, end in ends:
            request_id, known = request.request_id, request.num_tokens
            plan, denoises = self._plans[request_id], request_id in denoising
            plan.push(end, known, denoises)
            request.num_computed_tokens = plan.computed(end, known)
            if self._stages > 1 and (denoises or request.num_computed_tokens != end):
                # The stages hear so many steps later what the step made of the request.
                request.next_decode_eligible_step = self.current_step + self._stages

    def _round_window(self, request_id: str, output: SchedulerOutput) -> int:
        """Makes one request's share of a step end with a block; its end."""
        request, plan = self.requests[request_id], self._plans[request_id]
        length = plan.block_length
        start, known = request.num_computed_tokens, request.num_tokens
        end = start + output.num_scheduled_tokens[request_id]
        if end == known:
            # The prompt's last chunk takes the first denoising step along.
            wanted = plan.window_end(known)
            room = self.max_num_scheduled_tokens - output.total_num_scheduled_tokens
            if wanted - end <= room:
                end = wanted
        elif end < known and block_start(end, length) > start:
            end = block_start(end, length)
        covers = end > known and end % length == 0
        set_window(output, request_id, end - start, length if covers else 0)
        return end

    # ---- process a step ------------------------------------------------------

    def update_from_output(
        self,
        scheduler_output: SchedulerOutput,
        model_runner_output: ModelRunnerOutput,
    ) -> dict[int, EngineCoreOutputs]:
        """Processes a step's tokens; see upstream."""
        failed = self._fail_requests(model_runner_output)
        traces = self._observe(scheduler_output, model_runner_output)
        # Computed tokens were set when the window was scheduled: no draft token
        # is accepted or rejected here.
        outputs = super().update_from_output(
            replace(scheduler_output, scheduled_spec_decode_tokens={}),
            model_runner_output,
        )
        plans, requests = self._plans, self.requests
        for request_id in scheduler_output.num_scheduled_tokens:
            if (plan := plans.get(request_id)) is None:
                continue
            request = requests[request_id]
            computed = plan.pop(request.num_tokens)
            if computed is not None:
                request.num_computed_tokens = computed
        told = self._record.reports
        if not failed and not traces and not told:
            return outputs
        for output in (o for client in outputs.values() for o in client.outputs):
            if output.request_id in failed:
                output.stop_reason = failed[output.request_id]
            if output.request_id in traces:
                output.unmask_trace = traces[output.request_id][: len(output.new_token_ids)]
            # A stop string is found in the front end, which then hears no more.
            output.spec_decode_metrics = told.get(output.request_id, output.spec_decode_metrics)
        told.clear()
        return outputs

    def _fail_requests(self, runner_output: ModelRunnerOutput) -> dict[str, str]:
        """Has upstream end the requests whose policy failed in the worker.

        It ends those for which no grammar could be compiled; these go with them.

        Returns:
            What to tell their clients, by request.
        """
        failed = failed_requests(self._plans, runner_output)
        self.grammar_compile_error_reqs.update(failed)
        return failed

    def _observe(
        self, scheduler_output: SchedulerOutput, runner_output: ModelRunnerOutput
    ) -> dict[str, list[tuple[int, float]]]:
        """Counts denoising steps and committed tokens.

        Returns:
            The finished blocks' traces, by request, of those that want one.
        """
        traces: dict[str, list[tuple[int, float]]] = {}
        requests, plans = self.requests, self._plans
        for request_id in scheduler_output.scheduled_spec_decode_tokens:
            request, plan = requests.get(request_id), plans.get(request_id)
            if request is None or plan is None:
                continue
            if plan.denoised_nothing(plan.windows[0], request.num_tokens):
                continue  # The block had finished: a plain commit.
            trace = self._record.observe(request, plan, runner_output)
            if trace is not None:
                traces[request_id] = trace
        return traces

    def make_stats(
        self, spec_decoding_stats: SpecDecodingStats | None = None, *args: Any, **kwargs: Any
    ) -> SchedulerStats | None:
        """Adds the step's denoising statistics; see upstream."""
        stats = self._record.take()
        return super().make_stats(spec_decoding_stats or stats, *args, **kwargs)

    def get_grammar_bitmask(self, scheduler_output: SchedulerOutput) -> GrammarOutput | None:
        """What may come next depends on the canvas, which the worker has: it sees to that."""
        return None

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """The canvas lives on the device: nothing to do."""
