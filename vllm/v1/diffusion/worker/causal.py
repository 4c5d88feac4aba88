# SPDX-License-Identifier: Apache-2.0
"""Sequences of block-causal models, one per block, and rows where several blocks of a request are open.

Attention backends know causal and bidirectional sequences. A window is handed to them as one
bidirectional sequence per block, each over the request's cache up to the end of that block, which
is block-causal attention. Keys and values are written before they are read, so a block that is
committed is seen by the block after it in the same step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from typing_extensions import override

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.row_budget import PartialWindows, RowBudget
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.families import Family
from vllm.v1.diffusion.kernels.row_stats import RowStats
from vllm.v1.diffusion.layers.prefill_attention import StepAttention
from vllm.v1.diffusion.sampling.rows import DenoisedBatch, RowLayout, row_counts
from vllm.v1.diffusion.worker.sequences import Attention, Sequences
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import AttentionGroup

if TYPE_CHECKING:
    from torch import nn

    from vllm.config import VllmConfig
    from vllm.v1.diffusion.request.decoding import Decoding
    from vllm.v1.diffusion.sampling.sampler import DenoisingSampler


class BlockAttention(Attention):
    """One bidirectional sequence per block of a window."""

    block_causal = True

    @override
    def begin(self, attn_groups: list[list[AttentionGroup]]) -> None:
        make_room(attn_groups, self.vllm_config.scheduler_config.max_num_batched_tokens)

    @override
    def sequences(self, input_batch: InputBatch, captured: bool) -> Sequences:
        slots = input_batch.idx_mapping_np
        return split_at_blocks(
            self._starts(input_batch),
            input_batch.num_scheduled_tokens,
            self.canvases.block_length.np[slots],
            self.canvases.origin.np[slots],
        )

    @override
    def graph_shape(self, input_batch: InputBatch) -> tuple[int, int]:
        # A sequence has at least one row, so a graph of T rows never needs more than T.
        return input_batch.num_tokens_after_padding, self.canvases.width

    def finish(self, attention: StepAttention, input_batch: InputBatch) -> None:
        """Lets chunks of prompts take the block-causal kernel, whose blocks count from position 0."""
        slots = input_batch.idx_mapping_np
        block_lengths = self.canvases.block_length.np[slots]
        multiples = not (self.canvases.origin.np[slots] % block_lengths).any()
        prefill = self.prefill_attention
        if multiples and prefill is not None and prefill.wants(block_lengths):
            ends = self._starts(input_batch) + input_batch.num_scheduled_tokens
            prefill.attach(attention, input_batch, block_lengths, ends)

    def _starts(self, input_batch: InputBatch) -> np.ndarray:
        """First positions of the windows, int64 ``[R]``.

        A part of a block sees all of it: to a backend it is as many rows at the block's end.
        """
        starts: np.ndarray = input_batch.num_computed_tokens_np
        windows = PartialWindows.of(input_batch, self.canvases)
        if windows is None:
            return starts
        moved = starts.copy()
        lengths = self.canvases.block_length.np[input_batch.idx_mapping_np[windows.requests]]
        moved[windows.requests] += lengths - windows.rows
        return moved


class BlockRows(RowLayout):
    """Rows of one open block, of which a request may compute a part."""

    def __init__(self, canvases: CanvasStates, family: Family) -> None:
        super().__init__(canvases, family)
        self._budget = RowBudget(canvases)

    @override
    def place(self, input_batch: InputBatch) -> bool:
        windows = PartialWindows.of(input_batch, self.canvases)
        if windows is not None:
            self._budget.place(input_batch, windows)
        return windows is not None

    @override
    def spread(self, stats: RowStats, step: DenoisingStep) -> tuple[RowStats, DenoisingStep]:
        return self._budget.spread(stats, step)

    @override
    def covers(
        self, request_states: RequestState, slots: torch.Tensor, window_end: torch.Tensor
    ) -> torch.Tensor:
        covered = super().covers(request_states, slots, window_end)
        if not self.canvases.elastic.any():
            return covered
        # A part of a block begins with it, where the block has not finished in the step before.
        elastic = async_tensor_h2d(self.canvases.elastic, device=covered.device)[slots]
        begins = request_states.num_computed_tokens.gpu[slots] == self.canvases.start[slots]
        return covered | (elastic & begins)


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


def split_at_blocks(
    starts: np.ndarray, lengths: np.ndarray, block_lengths: np.ndarray, origins: np.ndarray
) -> Sequences:
    """Splits windows ``[start, start + length)`` where blocks begin.

    Args:
        starts: First position of each window, ``[R]``.
        lengths: Positions of each, ``[R]``.
        block_lengths: Tokens per block, ``[R]``.
        origins: A position at which a block begins, ``[R]``.
    """
    ends = starts + lengths
    first = (starts - origins) // block_lengths
    counts = -((origins - ends) // block_lengths) - first
    request = np.repeat(np.arange(len(starts)), counts)
    nth = np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts, counts)
    block_ends = (first[request] + nth + 1) * block_lengths[request] + origins[request]
    seq_lens = np.minimum(block_ends, ends[request]).astype(np.int32)
    before = np.concatenate(([0], np.cumsum(lengths)[:-1])) - starts
    query_start_loc = np.zeros(len(request) + 1, dtype=np.int32)
    query_start_loc[1:] = seq_lens + before[request]
    return Sequences(request, query_start_loc, seq_lens)


def make_room(attn_groups: list[list[AttentionGroup]], sequences: int) -> None:
    """Lets FlashAttention 3's builders plan for as many sequences as a step may have.

    With whole-step graphs they copy every step's plan to a buffer of theirs, which upstream makes
    for one sequence per request or row of a graph. Before the first capture.

    Args:
        attn_groups: The runner's attention layers, in groups.
        sequences: Sequences of a step, at most.
    """
    for group in (group for groups in attn_groups for group in groups):
        builder: Any = group.get_metadata_builder(0)
        plan = getattr(builder, "scheduler_metadata", None)
        # A counter, and four numbers per sequence, sequences rounded up to four.
        needed = 1 + 4 * (-(-sequences // 4) * 4)
        if plan is not None and len(plan) < needed:
            builder.scheduler_metadata = plan.new_zeros(needed)
