# SPDX-License-Identifier: Apache-2.0
"""What the scheduler counts of denoising: for a request's report, its trace and the metrics."""

from __future__ import annotations

from collections import Counter

import numpy as np

from vllm.v1.diffusion.core.plan import RequestPlan
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics
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
        self.reports: dict[str, RequestSpecDecodeMetrics] = {}
        """Counts of requests that ask for them, since the scheduler last handed them on."""
        self._steps: Counter[tuple[int, int]] = Counter()
        """Requests' steps since the last ``take``, by the positions they had and the tokens they emitted."""

    def observe(
        self, request: Request, plan: RequestPlan, runner_output: ModelRunnerOutput
    ) -> list[tuple[int, float]] | None:
        """Counts a step of a request's block.

        Args:
            request: The request.
            plan: Its plan, changed.
            runner_output: The step's output.

        Returns:
            The trace of the block, if it finished and the request wants one.
        """
        index = runner_output.req_id_to_index[request.request_id]
        committed = len(runner_output.sampled_token_ids[index])
        plan.denoised += 1
        plan.block_denoised += 1
        trace = None
        if committed and plan.decoding.trace:
            assert runner_output.unmask_trace is not None
            trace = _trace_of(plan, runner_output.unmask_trace[index, :committed])
        self._count(request, plan.block_length, committed, plan.decoding.stats)
        if committed:
            if self._log_stats:
                self._sums.steps_per_block.append(plan.block_denoised)
            plan.block_denoised = 0
        return trace

    def observe_anchor(
        self, request: Request, plan: RequestPlan, runner_output: ModelRunnerOutput
    ) -> list[tuple[int, float]] | None:
        """Counts the pass that makes a block's first token; see ``anchored.py``.

        Args:
            request: The request.
            plan: Its plan, changed.
            runner_output: The step's output.

        Returns:
            The token's trace, if the request wants one.
        """
        plan.denoised += 1
        self._count(request, 1, 1, detailed=False)
        if not plan.decoding.trace:
            return None
        assert runner_output.unmask_trace is not None
        index = runner_output.req_id_to_index[request.request_id]
        return _trace_of(plan, runner_output.unmask_trace[index, :1])

    def ended(self, request: Request, plan: RequestPlan) -> None:
        """Notes the tokens a forward of a request that has ended."""
        if plan.denoised and self._log_stats:
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

    def _count(self, request: Request, drafted: int, committed: int, detailed: bool) -> None:
        assert request.spec_decode_metrics is not None
        request.spec_decode_metrics.observe(
            num_draft_tokens=drafted, num_accepted=committed, detailed=detailed
        )
        if detailed:
            self.reports[request.request_id] = request.spec_decode_metrics
        if self._log_stats:
            self._steps[drafted, committed] += 1

    @property
    def _sums(self) -> SpecDecodingStats:
        if self._stats is None:
            self._stats = SpecDecodingStats.new(self._num_spec_tokens)
        return self._stats


def _trace_of(plan: RequestPlan, rows: np.ndarray) -> list[tuple[int, float]]:
    """The trace of tokens, from their rows of the worker's; what a template gave was never unmasked: -1."""
    return [(plan.denoised + int(step) if step < 0 else -1, float(p)) for step, p in rows.tolist()]
