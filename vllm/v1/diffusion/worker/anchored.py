# SPDX-License-Identifier: Apache-2.0
"""Rows of models whose finished blocks predict the next one's first token.

An anchor's one row belongs to the first position of the next block, which its window does not
reach. That position is unmasked whatever the rule, and its token is emitted at once.
``core/anchored.py`` plans the pass.
"""

from __future__ import annotations

import numpy as np
import torch
from typing_extensions import override

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.sampling.rows import DenoisedBatch, RowLayout, row_counts
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState


class AnchoredRows(RowLayout):
    """Writes an anchor's token to the canvas and emits it at once."""

    def point_logits(self, input_batch: InputBatch, request_states: RequestState, unsure: bool) -> None:
        """Points a shifted model's positions at the rows before them.

        A block's first position is known when it is denoised; it keeps its own row, which no one
        reads. An anchor's is the last row before the canvas.
        """
        super().point_logits(input_batch, request_states, unsure)
        if self.family.shifted:
            behind = (input_batch.expanded_local_pos > 0).to(input_batch.logits_indices.dtype)
            input_batch.logits_indices = input_batch.logits_indices - behind

    @override
    def may_miss_block(self, input_batch: InputBatch) -> bool:
        return bool((row_counts(input_batch) == 1).any())

    @override
    def first_only(self, step: DenoisingStep) -> torch.Tensor | None:
        # A policy may unmask nothing in a step; an anchor is unmasked whatever its policy.
        return step.row_start.diff() == 1 if (step.row_counts == 1).any() else None

    @override
    def emit(self, batch: DenoisedBatch) -> torch.Tensor:
        return emit_first(self.canvases, batch, super().emit(batch), row_counts(batch.input_batch) == 1)


def emit_first(
    canvases: CanvasStates, batch: DenoisedBatch, emitted: torch.Tensor, which: np.ndarray
) -> torch.Tensor:
    """Emits the token that a pass has made of a block's first position.

    Args:
        canvases: The canvases of this worker's requests; blocks of one token are turned.
        batch: The step's batch.
        emitted: How many tokens its requests emit, ``[R]``, changed.
        which: Requests with such a pass, bool ``[R]``.

    Returns:
        ``emitted``.
    """
    if not which.any():
        return emitted
    index = async_tensor_h2d(np.flatnonzero(which), dtype=torch.int64, device=emitted.device)
    emitted.index_fill_(0, index, 1)
    slots = batch.slots[index].to(torch.int64)
    # Steps of a block are those that denoise it, as in the published code.
    canvases.step.index_fill_(0, slots, 0)
    start, length = canvases.start[slots], canvases.length[slots]
    canvases.next_block(batch.request_states, slots, length == 1, start + length)
    return emitted


class ShiftedRows(RowLayout):
    """Rows before the positions that they predict; a window begins one token before its block."""

    @override
    def windows_are_canvases(self, input_batch: InputBatch) -> bool:
        return False

    @override
    def point_logits(self, input_batch: InputBatch, request_states: RequestState, unsure: bool) -> None:
        super().point_logits(input_batch, request_states, unsure)
        # Upstream's warm-up has windows that are canvases.
        input_batch.logits_indices = (input_batch.logits_indices - 1).clamp_(min=0)

    @override
    def computed(self, batch: DenoisedBatch) -> torch.Tensor:
        return (super().computed(batch) - 1).clamp(min=0)
