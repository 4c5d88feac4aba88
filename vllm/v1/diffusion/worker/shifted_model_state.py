# SPDX-License-Identifier: Apache-2.0
"""The worker's side of block diffusion with shifted logits and anchors.

What an anchor is, ``shifted_scheduler.py`` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.sampling.sampler import DenoisingSampler
from vllm.v1.diffusion.worker.model_state import DiffusionModelState
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.states import RequestState


class ShiftedSampler(DenoisingSampler):
    """Writes an anchor's token to the canvas and emits it at once."""

    _anchored = False
    """Whether the step in hand has anchors."""

    def _has_anchors(self, input_batch: InputBatch) -> bool:
        rows = np.diff(input_batch.cu_num_logits_np[: input_batch.num_reqs + 1])
        self._anchored = bool((rows == 1).any())
        return self._anchored

    def _takes_first_only(self, step: DenoisingStep) -> torch.Tensor | None:
        # A policy may unmask nothing in a step; an anchor is unmasked whatever its policy.
        return step.row_start.diff() == 1 if self._anchored else None

    def __call__(
        self,
        logits: torch.Tensor,
        input_batch: InputBatch,
        draft_logits: torch.Tensor | None = None,
    ) -> SamplerOutput:
        """See :class:`DenoisingSampler`.

        An anchor's one row belongs to the first position of the canvas, which is unmasked
        whatever the rule. Its block is not yet covered by the window: to the
        base, nothing is emitted.
        """
        output = super().__call__(logits, input_batch, draft_logits)
        rows = np.diff(input_batch.cu_num_logits_np[: input_batch.num_reqs + 1])
        anchors = np.flatnonzero(rows == 1)
        if len(anchors):
            index = async_tensor_h2d(anchors, dtype=torch.int64, device=logits.device)
            output.num_sampled[index] = 1
            slots = input_batch.idx_mapping[index]
            # The published steps of a block are those that denoise it.
            self.canvases.step[slots] = 0
            start, length = self.canvases.start[slots], self.canvases.length[slots]
            self.canvases.next_block(self.req_states, slots, length == 1, start + length)
        return output


class ShiftedModelState(DiffusionModelState):
    """Points each canvas position at the row before it."""

    sampler_cls = ShiftedSampler

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        """See :meth:`DiffusionModelState.prepare_inputs`.

        A block's first position is known when it is denoised; it keeps its own row,
        which nobody reads. An anchor's is the last row before the canvas.
        """
        inputs = super().prepare_inputs(input_batch, req_states)
        behind = (input_batch.expanded_local_pos > 0).to(input_batch.logits_indices.dtype)
        input_batch.logits_indices = input_batch.logits_indices - behind
        return inputs
