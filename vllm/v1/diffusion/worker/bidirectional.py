# SPDX-License-Identifier: Apache-2.0
"""Rows and sequences of bidirectional models, where nothing is computed for good.

A window's queries attend to the keys and values of the whole canvas. Those outside the window
are what the block's first step left in the cache. A guided request's window also holds a copy of its canvas
(``canvas/copies.py``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from typing_extensions import override

from vllm.config import VllmConfig
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.copies import Copies, Split
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.families import Family
from vllm.v1.diffusion.modes.bidirectional import MORE_SEQUENCES
from vllm.v1.diffusion.sampling.rows import DenoisedBatch, RowLayout, row_counts
from vllm.v1.diffusion.sampling.step_logits import in_parts
from vllm.v1.diffusion.worker.causal import make_room
from vllm.v1.diffusion.worker.sequences import (
    Attention,
    Sequences,
    StagedSequences,
    canvas_rows,
    window_ends,
)
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import AttentionGroup


class CanvasRows(RowLayout):
    """Rows of a block anywhere in its window."""

    begins_open: ClassVar[bool] = True
    rows_per_position: ClassVar[int] = 2

    def __init__(self, canvases: CanvasStates, family: Family) -> None:
        super().__init__(canvases, family)
        self._copies: Copies | None = None
        self._blank: torch.Tensor | None = None
        """Rows of the step that hold a copy's prompt."""

    @override
    def begin_step(self, input_batch: InputBatch, request_states: RequestState) -> None:
        self._copies = copies = Copies.of(input_batch, self.canvases)
        self._blank = None if copies is None else copies.place(input_batch, request_states)

    @override
    def inputs(self, input_batch: InputBatch) -> dict[str, Any]:
        if self._blank is not None:
            input_batch.input_ids.index_fill_(0, self._blank, self.canvases.mask_token_id)
        return {}

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
        rows = first + offset
        if self._copies is not None:
            twice, further = self._copies.rows(super().row_requests(input_batch))
            staged = async_tensor_h2d(np.stack((twice, further)), device=rows.device)
            rows = torch.cat((rows, rows[staged[0]] + staged[1]))
        # A window that was planned before it was known how short its block is has rows behind the canvas.
        input_batch.logits_indices = rows.clamp_(max=input_batch.num_tokens - 1)

    @override
    def row_requests(self, input_batch: InputBatch) -> np.ndarray:
        requests = super().row_requests(input_batch)
        if self._copies is None:
            return requests
        return np.concatenate((requests, requests[self._copies.rows(requests)[0]]))

    @override
    def folded(self, logits: torch.Tensor, step: DenoisingStep) -> torch.Tensor:
        """Moves the logits of guided requests away from what their copies say, in float32, part by part."""
        if len(logits) == len(step.row_slot):
            return logits
        guidance = self.canvases.guidance
        own, copies = logits[: len(step.row_slot)], logits[len(step.row_slot) :]
        guided = step.rows_of(guidance.np[step.slots_np] > 0)
        for part in in_parts(np.arange(len(guided)), logits.shape[1]):
            rows = async_tensor_h2d(guided[part], dtype=torch.int64, device=logits.device)
            scale = guidance.gpu[step.row_slot[rows]][:, None]
            without = copies[part[0] : part[-1] + 1].float()
            moved = without + (scale + 1) * (own[rows].float() - without)
            if own.dtype == torch.float16:
                moved = _in_range(moved, own.dtype)
            own.index_copy_(0, rows, moved.to(own.dtype))
        return own

    @override
    def covers(
        self, request_states: RequestState, slots: torch.Tensor, window_end: torch.Tensor
    ) -> torch.Tensor:
        # A window is the whole canvas or begins at the block. One that was planned for a block
        # that had finished is neither: it begins at 0 and is as long as the rest of the canvas.
        begin = request_states.num_computed_tokens.gpu[slots]
        start = self.canvases.start[slots]
        covered = (begin == start) | (window_end == self.canvases.canvas_end(slots, start))
        if self._copies is None:
            return covered
        # With a copy behind it: the whole canvas, since nothing is kept in a cache.
        return covered | (self.canvases.guidance.gpu[slots] > 0)

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
    """One bidirectional sequence per request, over the whole canvas, and one for each copy of a canvas."""

    def __init__(self, vllm_config: VllmConfig, canvases: CanvasStates, device: torch.device) -> None:
        super().__init__(vllm_config, canvases, device)
        self._moved: tuple[np.ndarray, np.ndarray] | None = None
        """Sequences that are copies, and by how many tokens their block tables are moved."""
        self._open_ended: tuple[np.ndarray, np.ndarray] | None = None
        """Sequences whose end only the device knows, and the slots of their requests."""

    @override
    def begin(self, attn_groups: list[list[AttentionGroup]]) -> None:
        scheduler = self.vllm_config.scheduler_config
        make_room(attn_groups, scheduler.max_num_seqs + MORE_SEQUENCES)

    @override
    def sequences(self, input_batch: InputBatch, captured: bool) -> Sequences:
        window_end = window_ends(input_batch)
        denoises = canvas_rows(input_batch) > 0
        ends = np.where(denoises, self._canvas_ends(input_batch, window_end), window_end)
        copies = Copies.of(input_batch, self.canvases)
        self._moved = self._open_ended = None
        initial = np.where(denoises, self.canvases.initial.np[input_batch.idx_mapping_np], 0)
        if copies is not None or initial.any():
            return self._parts(input_batch, ends, copies, initial)
        sequences = Sequences.of_requests(input_batch, ends)
        # A graph reads block tables of its own, as many as it has sequences.
        return replace(sequences, request=np.arange(input_batch.num_reqs)) if captured else sequences

    def _parts(
        self, input_batch: InputBatch, ends: np.ndarray, copies: Copies | None, initial: np.ndarray
    ) -> Sequences:
        """The sequences where requests have several.

        Args:
            input_batch: The step's batch.
            ends: Where each request's canvas ends, at most.
            copies: The copies of guided canvases.
            initial: Tokens with which an answer begins that grows, 0 for others.
        """
        if copies is not None:
            split = copies.split(input_batch.num_scheduled_tokens, ends)
            self._moved = split.copies, copies.offset
        else:
            used = input_batch.num_reqs
            starts = input_batch.query_start_loc_np[: used + 1]
            split = Split(np.arange(used), starts, ends.astype(np.int32), np.zeros(0, dtype=np.int64))
        if initial.any():
            canvases, slots = self.canvases, input_batch.idx_mapping_np
            # Backends want no sequence with more queries than keys, of which there are so many at least.
            shortest = np.minimum(canvases.origin.np[slots] + initial, ends)
            split = split.in_parts(np.where(initial > 0, shortest, 0))
            if copies is not None:
                self._moved = split.copies, copies.offset
            begins = np.isin(slots, canvases.added)
            keys = np.where((initial > 0) & begins, shortest, ends).astype(np.int32)
            grows = initial[split.request] > 0
            seq_lens = np.where(grows, keys[split.request], split.seq_lens)
            split = split._replace(seq_lens=seq_lens)
            # Before their first step requests are not on the device.
            open_ended = np.flatnonzero(grows & ~begins[split.request])
            self._open_ended = open_ended, slots[split.request[open_ended]]
        return Sequences(split.request, split.query_start_loc, split.seq_lens)

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

    @override
    def adjust(self, staged: StagedSequences, input_batch: InputBatch) -> None:
        if self._open_ended is not None:
            ended, slots = (
                async_tensor_h2d(x, dtype=torch.int64, device=self.device) for x in self._open_ended
            )
            end = self.canvases.start[slots] + self.canvases.length[slots]
            staged.seq_lens.index_copy_(0, ended, end.to(staged.seq_lens.dtype))
        if self._moved is None:
            return
        rows, offset = (
            async_tensor_h2d(moved, dtype=torch.int64, device=self.device) for moved in self._moved
        )
        for table, size in zip(staged.block_tables, self.block_sizes, strict=True):
            columns = torch.arange(table.shape[1], device=self.device) + (offset // size)[:, None]
            moved = table[rows].gather(1, columns.clamp(max=table.shape[1] - 1))
            table.index_copy_(0, rows, moved)

    @override
    def graph_shape(self, input_batch: InputBatch) -> tuple[int, int]:
        rows = input_batch.num_tokens_after_padding
        # Every sequence has a row.
        return min(input_batch.num_reqs_after_padding + MORE_SEQUENCES, rows), rows


def _in_range(logits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows of logits, of which none becomes infinite in another type.

    A row that is too large moves down until its best token is at 0: its distribution stays as it is.
    Tokens that are too small for the type have no probability.
    """
    most = torch.finfo(dtype).max
    best = logits.amax(dim=1, keepdim=True)
    return (logits - torch.where(best > most, best, 0.0)).clamp_(-most, most)
