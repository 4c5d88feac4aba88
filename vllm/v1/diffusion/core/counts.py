# SPDX-License-Identifier: Apache-2.0
"""What the scheduler counts of denoising: for a request's report, its trace and the metrics."""

from __future__ import annotations

from collections import Counter

import numpy as np

from vllm.v1.diffusion.core.plan import RequestPlan
from vllm.v1.diffusion.message.candidates import StepCandidates, step_candidates
from vllm.v1.diffusion.message.canvas import CanvasStep
from vllm.v1.diffusion.message.report import DenoisingReport
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.spec_decode.metrics import SpecDecodingStats


class DenoisingRecord:
    """Counts denoising steps and the tokens that they commit."""

    def __init__(self, num_spec_tokens: int, log_stats: bool) -> None:
        """Makes it, empty.

        Args:
            num_spec_tokens: Upstream's number of draft tokens, for its statistics.
            log_stats: Whether anybody reads the engine's statistics.
        """
        self._num_spec_tokens = num_spec_tokens
        self._log_stats = log_stats
        self._stats: SpecDecodingStats | None = None
        self._reports: dict[str, DenoisingReport] = {}
        """What was counted of each request since its last output."""
        self._canvases: dict[str, CanvasStep] = {}
        """Open blocks of requests that want to see them, behind the step that is processed."""
        self._candidates: dict[str, dict[int, list[StepCandidates]]] = {}
        """What steps might have written where no token is emitted yet, by request and index in its output."""
        self._ended: list[str] = []
        """Requests that ended since the last ``drop_ended``."""
        self._steps: Counter[tuple[int, int]] = Counter()
        """Requests' steps since the last ``take``, by the positions they had and the tokens they emitted."""

    def observe(self, request: Request, plan: RequestPlan, runner_output: ModelRunnerOutput) -> None:
        """Counts a step of a request's block.

        Args:
            request: The request.
            plan: Its plan, changed.
            runner_output: The step's output.
        """
        index = runner_output.req_id_to_index[request.request_id]
        committed = len(runner_output.sampled_token_ids[index])
        self._watch(request, plan, runner_output, index)
        self._consider(request, plan, runner_output, index)
        plan.denoised += 1
        plan.block_denoised += 1
        report = self._count(request, plan.block_length, committed)
        if committed:
            # A block that leaves with the one before it took no step of its own.
            steps = [plan.block_denoised] + [0] * (plan.finished_blocks(request.num_tokens, committed) - 1)
            report.steps_per_block += steps
            if self._log_stats:
                self._sums.steps_per_block += steps
            plan.block_denoised = 0
            self._trace(request, plan, runner_output, index, committed, report)

    def observe_anchor(self, request: Request, plan: RequestPlan, runner_output: ModelRunnerOutput) -> None:
        """Counts the pass that makes a block's first token; see ``anchored.py``.

        Args:
            request: The request.
            plan: Its plan, changed.
            runner_output: The step's output.
        """
        index = runner_output.req_id_to_index[request.request_id]
        self._watch(request, plan, runner_output, index)
        self._consider(request, plan, runner_output, index)
        plan.denoised += 1
        report = self._count(request, 1, 1)
        self._trace(request, plan, runner_output, index, 1, report)

    def report(self, request_id: str, tokens: int) -> DenoisingReport | None:
        """Hands on what was counted of a request since the last call; None for nothing.

        Args:
            request_id: The request.
            tokens: Tokens of its output, which may be cut behind an end token.
        """
        report = self._reports.pop(request_id, None)
        if report is not None and report.trace is not None:
            assert report.entropies is not None
            report.trace, report.entropies = report.trace[:tokens], report.entropies[:tokens]
            report.candidates = report.candidates and report.candidates[:tokens]
        return report

    def take_canvases(self) -> dict[str, CanvasStep]:
        """Hands on the open blocks behind the step that is processed, by request."""
        canvases, self._canvases = self._canvases, {}
        return canvases

    def drop_ended(self) -> None:
        """Forgets what no output carries: counts of requests that were aborted."""
        for request_id in self._ended:
            self._reports.pop(request_id, None)
            self._candidates.pop(request_id, None)
        self._ended.clear()

    def ended(self, request: Request, plan: RequestPlan) -> None:
        """Notes that a request has ended, and its tokens per forward."""
        self._ended.append(request.request_id)
        if plan.denoised and self._log_stats and plan.scoring is None:
            self._sums.tokens_per_forward.append(request.num_output_tokens / plan.denoised)

    def take(self) -> SpecDecodingStats | None:
        """What was counted since the last call; None for nothing."""
        if self._steps:
            sums = self._sums
            for (drafted, committed), times in self._steps.items():
                sums.num_drafts += times
                sums.num_draft_tokens += times * drafted
                sums.num_accepted_tokens += times * committed
                for i in range(drafted):
                    sums.num_draft_tokens_per_pos[i] += times
                for i in range(committed):
                    sums.num_accepted_tokens_per_pos[i] += times
            self._steps.clear()
        stats, self._stats = self._stats, None
        return stats

    def _count(self, request: Request, drafted: int, committed: int) -> DenoisingReport:
        if self._log_stats:
            self._steps[drafted, committed] += 1
        report = self._reports.setdefault(request.request_id, DenoisingReport())
        report.steps += 1
        return report

    def _watch(
        self, request: Request, plan: RequestPlan, runner_output: ModelRunnerOutput, index: int
    ) -> None:
        """Notes how a step leaves the open block, if the request wants to see it."""
        if plan.decoding.watched and runner_output.unmask_trace is not None:
            rows = runner_output.unmask_trace[index]
            canvas = CanvasStep.of(rows, step=plan.denoised, begin=request.num_output_tokens)
            self._canvases[request.request_id] = canvas

    def _consider(
        self, request: Request, plan: RequestPlan, runner_output: ModelRunnerOutput, index: int
    ) -> None:
        """Notes what a step might have written, if the request wants to know."""
        if (count := plan.decoding.candidates) and runner_output.unmask_trace is not None:
            held = self._candidates.setdefault(request.request_id, {})
            best = step_candidates(runner_output.unmask_trace[index], plan.denoised, count)
            for column, found in best.items():
                held.setdefault(request.num_output_tokens + column, []).append(found)

    def _trace(
        self,
        request: Request,
        plan: RequestPlan,
        runner_output: ModelRunnerOutput,
        index: int,
        count: int,
        report: DenoisingReport,
    ) -> None:
        """Notes the trace of emitted tokens, if the request wants one."""
        if plan.decoding.trace:
            assert runner_output.unmask_trace is not None
            rows = runner_output.unmask_trace[index, :count]
            report.trace = [*(report.trace or ()), *_trace_of(plan, rows)]
            report.entropies = [*(report.entropies or ()), *rows[:, 2].tolist()]
        if plan.decoding.candidates:
            held, begin = self._candidates.get(request.request_id, {}), request.num_output_tokens
            new = [held.pop(place, []) for place in range(begin, begin + count)]
            report.candidates = [*(report.candidates or ()), *new]

    @property
    def _sums(self) -> SpecDecodingStats:
        if self._stats is None:
            self._stats = SpecDecodingStats.new(self._num_spec_tokens)
        return self._stats


def _trace_of(plan: RequestPlan, rows: np.ndarray) -> list[tuple[int, float]]:
    """The trace of tokens, from their rows of the worker's; what a template gave was never unmasked: -1."""
    return [(plan.denoised + int(step) if step < 0 else -1, float(p)) for step, p, *_ in rows.tolist()]
