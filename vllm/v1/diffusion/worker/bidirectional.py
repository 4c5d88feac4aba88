# SPDX-License-Identifier: Apache-2.0
"""Rows and sequences of bidirectional models, where nothing is computed for good.

A window's queries attend to the keys and values of the whole canvas. Those outside the window
are what the block's first step left in the cache.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from typing_extensions import override

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.sampling.rows import DenoisedBatch, RowLayout, row_counts
from vllm.v1.diffusion.worker.sequences import Attention, Sequences, canvas_rows, window_ends
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState


class CanvasRows(RowLayout):
    """Rows of a block anywhere in its window."""

    begins_open: ClassVar[bool] = True

    @override
    def windows_are_canvases(self, input_batch: InputBatch) -> bool:
        return False

    @override
    def point_logits(self, input_batch: InputBatch, request_states: RequestState, unsure: bool) -> None:
        counts = row_counts(input_batch)
        if not counts.any():
            return
        request = async_tensor_h2d(
            np.repeat(np.arange(input_batch.num_reqs), counts),
            dtype=torch.int64,
            device=self.canvases.device,
        )
        slot = input_batch.expanded_idx_mapping
        first = input_batch.query_start_loc[request]
        computed = request_states.num_computed_tokens.gpu[slot]
        offset = self.canvases.start[slot] - computed + input_batch.expanded_local_pos
        if self.family.shifted:
            offset = (offset - 1).clamp(min=0)
        # Upstream's warm-up schedules windows that end before the canvas.
        input_batch.logits_indices = (first + offset).clamp_(max=input_batch.num_tokens - 1)

    @override
    def covers(
        self, request_states: RequestState, slots: torch.Tensor, window_end: torch.Tensor
    ) -> torch.Tensor:
        # A window is the whole canvas or begins at the block. One that was planned for a block
        # that had finished is neither: it begins at 0 and is as long as the rest of the canvas.
        begin = request_states.num_computed_tokens.gpu[slots]
        start = self.canvases.start[slots]
        return (begin == start) | (window_end == self.canvases.canvas_end(slots, start))

    @override
    def first_only(self, step: DenoisingStep) -> torch.Tensor | None:
        # Inside a cached block the row before it is not computed any more, so the step
        # that does compute it unmasks the token it predicts, and no other (Fast-dLLM).
        if not self.family.shifted:
            return None
        canvases, slots = self.canvases, step.slots
        # A template may have given that token: then the step unmasks what its policy chooses.
        return canvases.cached.gpu[slots] & (canvases.step[slots] == 0) & canvases.masked[slots, 0]

    @override
    def rewritable(self, slots: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        if not self.family.shifted:
            return first
        return first.clamp(min=1).where(self.canvases.cached.gpu[slots], first)

    @override
    def computed(self, batch: DenoisedBatch) -> torch.Tensor:
        """Where the next window begins: at the block, if the cache keeps what is before it."""
        slots, slots_np = batch.slots, batch.input_batch.idx_mapping_np
        cached = self.canvases.cached.np[slots_np]
        if not cached.any():
            return torch.zeros_like(batch.start)
        begins = ~batch.finished
        if not cached.all():
            begins &= self.canvases.cached.gpu[slots]
        if self.canvases.flags.unforeseen[slots_np].any() or not row_counts(batch.input_batch).all():
            begins &= self.covers(batch.request_states, slots, batch.window_end)
        return torch.where(begins, batch.start, 0)


class CanvasAttention(Attention):
    """One bidirectional sequence per request, over the whole canvas."""

    @override
    def sequences(self, input_batch: InputBatch, captured: bool) -> Sequences:
        window_end = window_ends(input_batch)
        denoises = canvas_rows(input_batch) > 0
        ends = np.where(denoises, self._canvas_ends(input_batch, window_end), window_end)
        return Sequences.of_requests(input_batch, ends)

    def _canvas_ends(self, input_batch: InputBatch, window_end: np.ndarray) -> np.ndarray:
        """Where the canvases end that windows lie in: they begin with a block of it, or end with it."""
        canvases, slots = self.canvases, input_batch.idx_mapping_np
        ends: np.ndarray = canvases.end.np[slots]
        length: np.ndarray = canvases.canvas.np[slots]
        if not length.any():
            return ends
        origin, last = canvases.origin.np[slots], window_end - 1
        end = last - (last - origin) % np.maximum(length, 1) + length
        inside: np.ndarray = np.where(length > 0, np.minimum(end, ends), ends)
        return inside
