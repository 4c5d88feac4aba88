# SPDX-License-Identifier: Apache-2.0
"""Rows of causal models whose window computes its unmasked tokens before its masks.

Slots of the KV cache are filled in the order of rows. Tokens before the window are in slots of their own. The
window's are in another order, and the next step computes them again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from typing_extensions import override

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.families import Family
from vllm.v1.diffusion.kernels.row_stats import RowStats
from vllm.v1.diffusion.sampling.rows import CausalContextRows, DenoisedBatch, row_counts
from vllm.v1.diffusion.worker.sequences import Attention, Sequences
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState

if TYPE_CHECKING:
    from torch import nn

    from vllm.config import VllmConfig
    from vllm.v1.diffusion.sampling.sampler import DenoisingSampler


class ReorderedRows(CausalContextRows):
    """Emits what is unmasked at the front of a window, which slides on by as much."""

    def __init__(self, canvases: CanvasStates, family: Family) -> None:
        super().__init__(canvases, family)
        self.after_steps = (self._goes_on,)
        self._rows: torch.Tensor | None = None

    @override
    def bind(self, sampler: DenoisingSampler, model: nn.Module, vllm_config: VllmConfig) -> None:
        self._logprobs = sampler.logprobs

    @override
    def begin_step(self, input_batch: InputBatch, request_states: RequestState) -> None:
        """Gives every row of a window the position of the token that it is to compute."""
        self._rows = None
        if not row_counts(input_batch).any():
            return
        slot, column = input_batch.expanded_idx_mapping, input_batch.expanded_local_pos.to(torch.int64)
        rows = input_batch.logits_indices
        moved = rows - column + self._place()[slot, column]
        # Upstream's warm-up has windows that are shorter than the canvas.
        self._rows = moved = moved.clamp(max=input_batch.num_tokens - 1).to(rows.dtype)
        # Upstream has read the positions for the cache's slots by now.
        input_batch.positions[moved] = input_batch.positions[rows]

    @override
    def windows_are_canvases(self, input_batch: InputBatch) -> bool:
        return False

    @override
    def point_logits(self, input_batch: InputBatch, request_states: RequestState, unsure: bool) -> None:
        if self._rows is not None:
            input_batch.logits_indices = self._rows

    @override
    def emit(self, batch: DenoisedBatch) -> torch.Tensor:
        emitted, input_batch = torch.zeros_like(batch.known), batch.input_batch
        denoised = np.flatnonzero(row_counts(input_batch))
        if not len(denoised):
            return emitted
        canvases = self.canvases
        index = async_tensor_h2d(denoised, dtype=torch.int64, device=canvases.device)
        slots = input_batch.idx_mapping[index].to(torch.int64)
        known = ~canvases.masked[slots] & (canvases.columns < canvases.length[slots, None])
        leaving = known.to(torch.int64).cumprod(dim=1).sum(dim=1)
        emitted[index] = leaving.to(emitted.dtype)
        canvases.slide(batch.request_states, slots, leaving)
        self._logprobs.slide(input_batch.idx_mapping_np[denoised], leaving)
        return emitted

    def _place(self) -> torch.Tensor:
        """Rows of the columns of all windows: first what is unmasked, int64 ``[S, W]``."""
        canvases = self.canvases
        inside = canvases.columns < canvases.length[:, None]
        known, masked = ~canvases.masked & inside, canvases.masked & inside
        before = known.sum(dim=1, keepdim=True)
        place = torch.where(masked, before + masked.cumsum(dim=1), known.cumsum(dim=1)) - 1
        return torch.where(inside, place, canvases.columns)

    def _goes_on(self, stats: RowStats, step: DenoisingStep, done: torch.Tensor) -> torch.Tensor:
        """A window is never done: it slides."""
        return torch.zeros_like(done)


class CausalAttention(Attention):
    """One causal sequence per request."""

    @override
    def causal(self, sequences: Sequences, count: int, captured: bool) -> bool:
        return True
