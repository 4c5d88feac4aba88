# SPDX-License-Identifier: Apache-2.0
"""Schedules diffusion requests; the mode's planner says which positions a step computes.

The canvas travels on upstream's speculative-decoding path: a window is known tokens that are not
computed yet, and draft tokens in the place of positions that are not known.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

from vllm.v1.core.sched.output import GrammarOutput, NewRequestData, SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.diffusion.config import resolve_diffusion_config
from vllm.v1.diffusion.core.counts import DenoisingRecord
from vllm.v1.diffusion.core.failed_requests import failed_requests
from vllm.v1.diffusion.core.grammar_threads import compile_beside_steps
from vllm.v1.diffusion.core.plan import DRAFT, RequestPlan, set_window
from vllm.v1.diffusion.core.planner import WindowPlanner
from vllm.v1.diffusion.core.scores import Scoring, unscored
from vllm.v1.diffusion.core.window_kv_blocks import WindowKVBlocks
from vllm.v1.diffusion.message.compiled_grammar import serialised
from vllm.v1.diffusion.message.report import DenoisingReport, Likelihood
from vllm.v1.diffusion.message.request_data import DiffusionRequestData, described
from vllm.v1.diffusion.message.scores import joined_scores
from vllm.v1.diffusion.modes import mode_of
from vllm.v1.diffusion.request.likelihood import sampling_of, scoring, targets_of
from vllm.v1.diffusion.request.resolve import resolve_decoding
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.outputs import DraftTokenIds, LogprobsTensors, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.spec_decode.metrics import SpecDecodingStats


def _seniority(request: Request) -> tuple[int, float]:
    """What upstream preempts by: the greatest first."""
    return request.priority, request.arrival_time


class DiffusionScheduler(Scheduler):
    """Upstream's scheduler with windows of blocks; sync and async.

    Raises:
        ValueError: The sizes of KV blocks, canvas blocks and batches do
            not fit each other.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.diffusion_config = resolve_diffusion_config(self.vllm_config)
        served = self.diffusion_config.block_length
        assert served is not None
        self.mode = mode_of(self.vllm_config)
        self.planner: WindowPlanner = self.mode.planner.load()(self, served)
        # No token is sampled beside the canvas, and every window may run to the
        # end of a block that is not there yet.
        self.num_sampled_tokens_per_step = 0
        self.num_lookahead_tokens = self.planner.lookahead
        self._plans: dict[str, RequestPlan] = {}
        self._check_cache()
        compile_beside_steps(self.structured_output_manager)
        one_kind = len(self.kv_cache_config.kv_cache_groups) == 1
        allocate = WindowKVBlocks(
            self.kv_cache_manager, self._plans, self.hash_block_size if one_kind else None
        )
        self.kv_cache_manager.allocate_slots = allocate  # type: ignore[method-assign,assignment]
        # ``running`` is in the order of turns, not of arrivals: upstream then preempts by priority and
        # arrival, where the last place would name whoever has just made a step.
        self.policy = SchedulingPolicy.PRIORITY
        self._last_arrival = -math.inf
        backend = self.parallel_config.distributed_executor_backend
        self._workers_elsewhere = self.parallel_config.world_size > 1 or backend not in (None, "uni")
        self._stages = self.parallel_config.pipeline_parallel_size
        self._tokens_of_step = self.max_num_scheduled_tokens
        """Tokens that the step that is planned may have."""
        self._scores: dict[str, tuple[LogprobsTensors, Likelihood]] = {}
        """Log probabilities of prompts whose requests have not been answered yet."""
        self._runner_output: ModelRunnerOutput | None = None
        self._record = DenoisingRecord(self.num_spec_tokens, self.log_stats)

    def _check_cache(self) -> None:
        """Checks that the longest request has room alone: one that has not would be preempted for ever."""
        override, groups = self.cache_config.num_gpu_blocks_override, self.kv_cache_config.kv_cache_groups
        if override is None or len(groups) > 1:
            return  # Upstream has checked it.
        # One KV block is upstream's own, to which unused entries of block tables point.
        room = (override - 1) * groups[0].kv_cache_spec.block_size
        if room < self.max_model_len:
            raise ValueError(
                f"num_gpu_blocks_override={override} is too small: the KV cache has room for {room} tokens, "
                f"and a request may have max_model_len={self.max_model_len}."
            )

    # ---- requests come and go ------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Admits a request; see upstream."""
        params, config = request.sampling_params, self.diffusion_config
        decoding = resolve_decoding(params, config)
        targets = targets_of(request.prompt_token_ids or [], params, decoding, config) if params else None
        scored = None
        if params is not None and targets is not None:
            sampling = None if targets.hidden is None else sampling_of(params, config)
            scored = Scoring.begin(request, targets, sampling)
        if params is not None and params.prompt_logprobs is not None and scored is None:
            request.sampling_params = unscored(params)
        self.planner.admit(request)
        if targets is not None:
            decoding = scoring(targets, config)
        plan = self._plans[request.request_id] = self.planner.plan(request, decoding)
        plan.scoring = scored
        if (structured := request.structured_output_request) is not None:
            plan.reasoning_ended = structured.reasoning_ended
            structured._grammar = serialised(structured._grammar, self._workers_elsewhere)
        if (salt := self.planner.cache_salt(request, decoding)) is not None:
            request.cache_salt = f"{request.cache_salt or ''}|{salt}"
            request.block_hashes.clear()
            request.update_block_hashes()
        # No two of a time: the outputs of one request (n) arrive together, and one of them is the youngest.
        arrival = max(request.arrival_time, math.nextafter(self._last_arrival, math.inf))
        self._last_arrival = request.arrival_time = arrival
        super().add_request(request)

    def _take_up_again(self, request: Request, plan: RequestPlan) -> None:
        """Takes a request up again whose targets are written: for another sample of them, or to answer it."""
        scored, request_id = plan.scoring, request.request_id
        assert scored is not None
        if request.status == RequestStatus.RUNNING:
            self.running.remove(request)
            self._preempt_request(request, time.monotonic(), drop_stale_output=True)
            # None that says anything of the engine's load.
            request.num_preemptions -= 1
            if self.log_stats:
                request.events.pop()
        request.drop_stale_output = True
        if again := scored.goes_on(request):
            decoding = scoring(scored.targets, self.diffusion_config)
        else:
            scored.end(request)
            self._scores[request_id] = joined_scores(scored.parts), scored.likelihood(plan.denoised)
            decoding = resolve_decoding(request.sampling_params, self.diffusion_config)
        self.planner.admit(request)
        new = self._plans[request_id] = self.planner.plan(request, decoding)
        new.windows = plan.windows
        new.reasoning_ended = plan.reasoning_ended
        if again:
            new.scoring, new.denoised = scored, plan.denoised

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
        """Plans one window per request, then lets upstream schedule them."""
        self.planner.begin_step(len(self.running) + len(self.waiting))
        turns = self._plan_windows()
        budget, self.max_num_scheduled_tokens = self.max_num_scheduled_tokens, self._tokens_of_step
        try:
            output = super().schedule(*args, **kwargs)
        finally:
            self.max_num_scheduled_tokens = budget
        output.scheduled_new_reqs = [self._described(data) for data in output.scheduled_new_reqs]
        still = set(self.running)
        begun = still.difference(turns)
        self.running = [r for r in turns if r in still] + [r for r in self.running if r in begun]
        return output

    def _plan_windows(self) -> list[Request]:
        """Plans the running requests' windows in the order of turns, and puts the planned ones in front.

        Of those the oldest is first, so that no other takes the last KV blocks before it.

        Returns:
            The running requests in the order of the next step's turns: first those for which this
            one has no room, since windows are never cut to fit a budget.
        """
        turns, budget = self.running, self.max_num_scheduled_tokens
        planned, others, postponed = [], [], []
        rows, reading, first = 0, 0, False
        for request in turns:
            plan = self._plans[request.request_id]
            if request.is_prefill_chunk and self.planner.reads_prompt(request, plan):
                # The prompt may be cut; only the last chunk is planned as a whole.
                request.spec_token_ids = []
                if not budget:
                    postponed.append(request)
                left = request.num_tokens - request.num_computed_tokens
                budget -= min(left, budget)
                reading += left
                others.append(request)
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
                others.append(request)
            else:
                budget -= needed
                rows += needed
                first = first or (not request.num_output_tokens and plan.scoring is None)
                planned.append(request)
        wait = self.planner.prompts_wait(rows, reading, first)
        self._tokens_of_step = rows if wait else self.max_num_scheduled_tokens
        self.running = sorted(planned, key=_seniority) + others
        late = set(postponed)
        return postponed + [request for request in turns if request not in late]

    def _on_its_way(self, request: Request) -> bool:
        """Whether a stage of a pipeline has yet to receive what a step made of the canvas."""
        plan = self._plans[request.request_id]
        return bool(plan.windows) or self.current_step + 1 < request.next_decode_eligible_step

    def _described(self, data: NewRequestData) -> NewRequestData:
        plan = self._plans[data.req_id]
        if plan.scoring is not None:
            return DiffusionRequestData(**vars(data), targets=plan.scoring.targets)
        structured = self.requests[data.req_id].structured_output_request
        return described(data, structured, plan.reasoning_ended)

    def _plan_window(self, request: Request) -> int | None:
        """Sets a running request's draft tokens.

        Returns:
            Tokens that the window needs as a whole, or None to skip the request
            this step.
        """
        plan = self._plans[request.request_id]
        request.spec_token_ids = []
        window = self.planner.window(request, plan) if len(plan.windows) < 2 else None
        if window is None:
            return None
        request.num_computed_tokens = window.begin
        request.spec_token_ids = [DRAFT] * (window.end - request.num_tokens)
        return window.end - window.begin

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        """Rounds what upstream scheduled and records it."""
        requests = self.requests
        ends = [
            (requests[request_id], self._round_window(request_id, scheduler_output))
            for request_id in scheduler_output.num_scheduled_tokens
        ]
        super()._update_after_schedule(scheduler_output)
        denoising = scheduler_output.scheduled_spec_decode_tokens
        for request, (end, computed) in ends:
            request_id, known = request.request_id, request.num_tokens
            plan, denoises = self._plans[request_id], request_id in denoising
            plan.push(end, known, denoises, computed)
            request.num_computed_tokens = plan.grid.computed(computed, known)
            if self._stages > 1 and (denoises or request.num_computed_tokens != end):
                # The stages receive so many steps later what the step made of the request.
                request.next_decode_eligible_step = self.current_step + self._stages

    def _round_window(self, request_id: str, output: SchedulerOutput) -> tuple[int, int]:
        """Sets one request's share of a step.

        Returns:
            Where its window ends, and what it computes without a gap.
        """
        request, plan = self.requests[request_id], self._plans[request_id]
        start = request.num_computed_tokens
        scheduled = start + output.num_scheduled_tokens[request_id]
        end, rows, tokens = self.planner.round(request, plan, scheduled, output)
        tokens = end - start if tokens is None else tokens
        set_window(output, request_id, tokens, rows)
        return end, start + tokens

    def extend(self, request: Request, end: int, output: SchedulerOutput) -> bool:
        """Extends a new request's window from position 0 to ``end``, in budget and KV blocks.

        Returns:
            Whether there was room.
        """
        request_id = request.request_id
        others = output.total_num_scheduled_tokens - output.num_scheduled_tokens[request_id]
        if others + end > self.max_num_scheduled_tokens:
            return False
        if self.kv_cache_manager.allocate_slots(request, end) is None:
            return False
        for data in output.scheduled_new_reqs:
            if data.req_id == request_id:
                data.block_ids = self.kv_cache_manager.get_block_ids(request_id)
        return True

    # ---- process a step ------------------------------------------------------

    def update_from_output(
        self,
        scheduler_output: SchedulerOutput,
        model_runner_output: ModelRunnerOutput,
    ) -> dict[int, EngineCoreOutputs]:
        """Processes a step's tokens; see upstream."""
        self._runner_output = model_runner_output
        failed = self._fail_requests(model_runner_output)
        self._observe(scheduler_output, model_runner_output)
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
            if plan.scoring is not None and plan.scoring.is_done(request):
                self._take_up_again(request, plan)
        for output in (o for client in outputs.values() for o in client.outputs):
            if output.request_id in failed:
                output.stop_reason = failed[output.request_id]
            # What is new, with every block: the front end finds a stop string without asking again.
            output.diffusion = self._record.report(output.request_id, len(output.new_token_ids))
            if output.new_token_ids and output.request_id in self._scores:
                output.new_prompt_logprobs_tensors, likelihood = self._scores.pop(output.request_id)
                output.diffusion = replace(output.diffusion or DenoisingReport(), likelihood=likelihood)
        self._send_canvases(outputs)
        self._record.drop_ended()
        if self._scores:
            self._scores = {i: scores for i, scores in self._scores.items() if i in self.requests}
        return outputs

    def _send_canvases(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Adds the open blocks that requests want to see, with an output of their own where there is none."""
        canvases = self._record.take_canvases()
        if not canvases:
            return
        for output in (o for client in outputs.values() for o in client.outputs):
            if canvas := canvases.pop(output.request_id, None):
                output.diffusion = replace(output.diffusion or DenoisingReport(), canvases=[canvas])
        for request_id, canvas in canvases.items():
            if request := self.requests.get(request_id):
                report = DenoisingReport(canvases=[canvas])
                own = EngineCoreOutput(request_id=request_id, new_token_ids=[], diffusion=report)
                outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(own)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], *args: Any, **kwargs: Any
    ) -> tuple[list[int], bool]:
        if (scored := self._plans[request.request_id].scoring) is not None:
            scored.take(request, new_token_ids, self._runner_output)
            return [], False
        new_token_ids, stopped = super()._update_request_with_output(request, new_token_ids, *args, **kwargs)
        if new_token_ids and not stopped:
            stopped = self.planner.has_answered(request, self._plans[request.request_id])
            if stopped:
                request.status = RequestStatus.FINISHED_STOPPED
        return new_token_ids, stopped

    def _fail_requests(self, runner_output: ModelRunnerOutput) -> dict[str, str]:
        """Has upstream end the requests whose policy failed in the worker.

        It ends those for which no grammar could be compiled; these go with them.

        Returns:
            What to tell their clients, by request.
        """
        failed = failed_requests(self._plans, runner_output)
        self.grammar_compile_error_reqs.update(failed)
        return failed

    def _observe(self, scheduler_output: SchedulerOutput, runner_output: ModelRunnerOutput) -> None:
        """Counts denoising steps and emitted tokens."""
        requests, plans = self.requests, self._plans
        for request_id in scheduler_output.scheduled_spec_decode_tokens:
            request, plan = requests.get(request_id), plans.get(request_id)
            if request is None or plan is None:
                continue
            window, known = plan.windows[0], request.num_tokens
            if window.stale and request.drop_stale_output:
                continue  # Upstream drops what it has made.
            if plan.scoring is not None:
                plan.denoised += 1  # No step that the client's answer takes.
                continue
            index = runner_output.req_id_to_index[request_id]
            self.planner.emits(request, plan, len(runner_output.sampled_token_ids[index]))
            if self.planner.is_anchor(plan, window, known):
                self._record.observe_anchor(request, plan, runner_output)
            elif self.planner.denoised_nothing(plan, window, known):
                continue  # The block had finished: a plain commit.
            else:
                self._record.observe(request, plan, runner_output)

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
