# SPDX-License-Identifier: Apache-2.0
"""Rows of block-causal models with several open blocks per request."""

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
from vllm.v1.diffusion.sampling.rows import DenoisedBatch, RowLayout, row_counts

if TYPE_CHECKING:
    from torch import nn

    from vllm.config import VllmConfig
    from vllm.v1.diffusion.request.decoding import Decoding
    from vllm.v1.diffusion.sampling.sampler import DenoisingSampler


class OpenBlocksRows(RowLayout):
    """Emits finished blocks at the front of a canvas, which slides on by as many.

    Requests with one open block are denoised as ever.
    """

    def __init__(self, canvases: CanvasStates, family: Family) -> None:
        super().__init__(canvases, family)
        self.after_steps = (self._goes_on,)
        self._several: set[int] = set()
        """Slots whose requests open more than one block."""

    @override
    def bind(self, sampler: DenoisingSampler, model: nn.Module, vllm_config: VllmConfig) -> None:
        self._logprobs = sampler.logprobs

    @override
    def add(self, slot: int, decoding: Decoding, prompt_len: int) -> None:
        self._several.discard(slot)
        if decoding.open_blocks > 1:
            self._several.add(slot)

    @override
    def remove(self, slot: int) -> None:
        self._several.discard(slot)

    @override
    def emit(self, batch: DenoisedBatch) -> torch.Tensor:
        emitted, input_batch, canvases = super().emit(batch), batch.input_batch, self.canvases
        slots_np = input_batch.idx_mapping_np
        several = np.isin(slots_np, list(self._several)) & (row_counts(input_batch) > 0)
        denoised = np.flatnonzero(several)
        if not len(denoised):
            return emitted
        index = async_tensor_h2d(denoised, dtype=torch.int64, device=canvases.device)
        slots = input_batch.idx_mapping[index].to(torch.int64)
        known = ~canvases.masked[slots] & (canvases.columns < canvases.length[slots, None])
        leaving = known.to(torch.int64).cumprod(dim=1).sum(dim=1)
        leaving -= leaving % canvases.block_length.gpu[slots]
        new = batch.start[index] + leaving - batch.known[index]
        emitted[index] = torch.where(leaving > 0, new, 0).to(emitted.dtype)
        canvases.slide(batch.request_states, slots, leaving)
        self._logprobs.slide(slots_np[denoised], leaving)
        return emitted

    def _goes_on(self, stats: RowStats, step: DenoisingStep, done: torch.Tensor) -> torch.Tensor:
        """A canvas of several blocks is never done: it slides."""
        if self._several.isdisjoint(step.slots_np.tolist()):
            return done
        canvases = self.canvases
        return done & (canvases.span.gpu[step.slots] == canvases.block_length.gpu[step.slots])
