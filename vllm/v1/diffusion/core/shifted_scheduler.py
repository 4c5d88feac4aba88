# SPDX-License-Identifier: Apache-2.0
"""Schedules block diffusion from an autoregressive first token (Fast-dLLM v2).

A block's first token is the prediction behind the finished blocks. The pass that
computes a finished block for good makes it, so a block costs one pass more than its
denoising steps: that pass, the *anchor*, has one row of logits and emits one token. The
passes after it denoise the rest of the block, each position from the row before it.
"""

from __future__ import annotations

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.diffusion.core.plan import set_window
from vllm.v1.diffusion.core.scheduler import DiffusionScheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request


class ShiftedDiffusionScheduler(DiffusionScheduler):
    """Takes an anchor wherever the known tokens are whole blocks."""

    def _plan_window(self, request: Request) -> int | None:
        if self._at_anchor(request):
            request.spec_token_ids = []
            return request.num_tokens - request.num_computed_tokens
        return super()._plan_window(request)

    def _round_window(self, request_id: str, output: SchedulerOutput) -> int:
        request = self.requests[request_id]
        length = output.num_scheduled_tokens[request_id]
        end = request.num_computed_tokens + length
        if end == request.num_tokens and self._at_anchor(request):
            set_window(output, request_id, length, rows=1)
            return end
        return super()._round_window(request_id, output)

    def _observe(self, scheduler_output: SchedulerOutput, runner_output: ModelRunnerOutput) -> None:
        """Counts the anchors too: to the base they are plain commits."""
        super()._observe(scheduler_output, runner_output)
        for request_id in scheduler_output.scheduled_spec_decode_tokens:
            request, plan = self.requests.get(request_id), self._plans.get(request_id)
            if request is None or plan is None or plan.windows[0].end != request.num_tokens:
                continue
            self._record.observe_anchor(request, plan, runner_output)

    def _at_anchor(self, request: Request) -> bool:
        """Whether the next token is the first of a block."""
        length = self._plans[request.request_id].block_length
        return request.num_tokens % length == 0
