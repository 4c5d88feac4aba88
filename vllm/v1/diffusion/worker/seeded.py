# SPDX-License-Identifier: Apache-2.0
"""Rows of models whose causal passes make tokens: seeds of blocks, or the tokens that verify a draft.

Row i of a causal pass predicts token i + 1. Row i of a pass that denoises predicts token i. A draft is a
block whose first token is the last known one. Once it has no mask left, its next pass is causal. That pass
emits its predictions up to and including the first that disagrees with the draft. The last of them begins
the next draft. ``core/seeded.py`` plans the passes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from typing_extensions import override

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.families import Family
from vllm.v1.diffusion.kernels.row_stats import RowStats
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.sampling.rows import DenoisedBatch, RowLayout, row_counts
from vllm.v1.diffusion.sampling.step_outputs import StepOutputs
from vllm.v1.diffusion.worker.anchored import emit_first
from vllm.v1.diffusion.worker.thinking import Thinking
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState


class Accepted(NamedTuple):
    """What became of the n drafts of a step.

    Attributes:
        which: Which of the step's R requests they are of, int64 ``[n]``.
        leaving: How many tokens are emitted, 0 where the draft is not complete, int64 ``[n]``.
        tokens: What the rows predict, int64 ``[n, W]``: the first ``leaving`` are emitted.
    """

    which: torch.Tensor
    leaving: torch.Tensor
    tokens: torch.Tensor


class SeededRows(RowLayout):
    """Writes seeds to canvases and emits them at once; verifies drafts."""

    changes_logits = True

    def __init__(self, canvases: CanvasStates, family: Family) -> None:
        super().__init__(canvases, family)
        self.after_steps = (self._end_thinking, self._verify)
        self._thinking = Thinking(canvases)
        self._seeds = np.zeros(0, dtype=bool)
        """Requests of the batch whose pass makes a seed; also ``_drafts``, whose window is a draft's."""
        self._drafts = np.zeros(0, dtype=bool)
        self._complete: torch.Tensor | None = None
        """Which of the batch's drafts had no mask left before the step, bool ``[n]``."""
        self._accepted: Accepted | None = None
        self._request_states: RequestState | None = None

    # ---- asked by the model state ----------------------------------------------

    @override
    def begin_step(self, input_batch: InputBatch, request_states: RequestState) -> None:
        decodings = [self._decoding(int(slot)) for slot in input_batch.idx_mapping_np]
        rows, lengths = row_counts(input_batch), input_batch.num_scheduled_tokens
        verifies = np.array([d is not None and d.verifies for d in decodings], dtype=bool)
        seeded = np.array([d is not None and (d.seeded or d.verifies) for d in decodings], dtype=bool)
        self._seeds = seeded & (rows == 1)
        self._drafts = verifies & (rows > 1) & (rows == lengths)
        self._accepted, self._request_states = None, request_states
        self._thinking.begin_step(input_batch, request_states, (rows > 0) & ~self._seeds & ~self._drafts)

    # ---- asked by the sampler --------------------------------------------------

    @override
    def change_logits(self, logits: torch.Tensor, step: DenoisingStep) -> None:
        decodings = [self._decoding(int(slot)) for slot in step.slots_np]
        drops = np.array([d is not None and d.drops_mask for d in decodings], dtype=bool)
        if drops.any():
            rows = async_tensor_h2d(step.rows_of(drops), dtype=torch.int64, device=logits.device)
            logits[rows, self.canvases.mask_token_id] = -torch.inf

    @override
    def may_miss_block(self, input_batch: InputBatch) -> bool:
        return bool(self._seeds.any())

    @override
    def active(self, input_batch: InputBatch, slots: torch.Tensor, whole: bool) -> torch.Tensor:
        active = super().active(input_batch, slots, whole)
        if not self._drafts.any():
            return active
        complete = ~self.canvases.masked.any(dim=1)
        self._complete = complete[input_batch.idx_mapping[self._index(self._drafts)]]
        drafted = async_tensor_h2d(
            np.repeat(self._drafts, row_counts(input_batch)), dtype=torch.bool, device=active.device
        )
        return active | (drafted & complete[input_batch.expanded_idx_mapping])

    @override
    def first_only(self, step: DenoisingStep) -> torch.Tensor | None:
        seeds = self._seeds[step.requests]
        if not seeds.any():
            return None
        return async_tensor_h2d(seeds, dtype=torch.bool, device=step.slots.device)

    @override
    def outputs(self, outputs: StepOutputs, step: DenoisingStep) -> StepOutputs:
        if self._accepted is None:
            return outputs
        # The others emit nothing: what their canvases hold does not matter.
        outputs.tokens[step.index[self._accepted.which]] = self._accepted.tokens
        return outputs

    @override
    def emit(self, batch: DenoisedBatch) -> torch.Tensor:
        emitted = emit_first(self.canvases, batch, super().emit(batch), self._seeds)
        if self._accepted is not None:
            emitted[self._index(self._drafts)] = self._accepted.leaving.to(emitted.dtype)
        return emitted

    @override
    def computed(self, batch: DenoisedBatch) -> torch.Tensor:
        input_batch, window_end, start = batch.input_batch, batch.window_end, batch.start
        if self._accepted is not None:
            index = self._index(self._drafts)
            start = start.index_add(0, index, self._accepted.leaving)
        computed = torch.minimum(window_end, start)
        decodings = [self._decoding(int(slot)) for slot in input_batch.idx_mapping_np]
        sees_itself = np.array([d is not None and not d.causal for d in decodings], dtype=bool)
        if sees_itself.any():
            # A prompt is final as a whole.
            index = self._index(sees_itself)
            origin = self.canvases.origin.gpu[input_batch.idx_mapping[index]]
            computed[index] = torch.where(window_end[index] < origin, 0, computed[index])
        return computed

    # ---- behind the unmasking --------------------------------------------------

    def _end_thinking(self, stats: RowStats, step: DenoisingStep, done: torch.Tensor) -> torch.Tensor:
        self._thinking.end_in_seeds(step, self._seeds[step.requests])
        return done

    def _verify(self, stats: RowStats, step: DenoisingStep, done: torch.Tensor) -> torch.Tensor:
        """Takes what a causal pass makes of complete drafts, and begins the next ones."""
        if not self._drafts.any():
            return done
        canvases, columns = self.canvases, self.canvases.columns
        which = self._index(self._drafts[step.requests])
        slots, complete = step.slots[which], self._complete
        assert complete is not None and self._request_states is not None
        rows = (step.row_start[which, None].to(torch.int64) + columns).clamp(max=len(stats.sample) - 1)
        slots_np = step.slots_np[self._drafts[step.requests]]
        predicted = self._thinking.end_in_predictions(slots_np, stats.sample[rows])
        inside = columns[1:] < canvases.length[slots, None]
        agrees = (predicted[:, :-1] == canvases.tokens[slots, 1:]) & inside
        count = 1 + agrees.to(torch.int64).cumprod(dim=1).sum(dim=1)
        # No token may stand behind the context.
        start = canvases.start[slots]
        count = torch.where(complete, torch.minimum(count, canvases.end.gpu[slots] - start - 1), 0)
        self._accepted = Accepted(which, count, predicted)
        canvases.next_block(self._request_states, slots, complete, start + count)
        seed = predicted.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]
        canvases.tokens[slots, 0] = torch.where(complete, seed, canvases.tokens[slots, 0])
        canvases.masked[slots, 0] &= ~complete
        done.index_fill_(0, which, False)
        return done

    def _decoding(self, slot: int) -> Decoding | None:
        """How a slot's request is decoded; None in warm-up batches."""
        return self.canvases.decoding.get(slot)

    def _index(self, flags: np.ndarray) -> torch.Tensor:
        """Places of the true ones, int64, on the device."""
        return async_tensor_h2d(np.flatnonzero(flags), dtype=torch.int64, device=self.canvases.device)
