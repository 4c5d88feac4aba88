# SPDX-License-Identifier: Apache-2.0
"""Sequences of blocks that may be drafts, and of the masks behind them.

Whether a step drafts a block or verifies it, only the device knows. So each row of the block, and of the
masks, is a sequence of its own, and the device writes how many keys it has. The masks' own keys are a matter
of the layers (``layers/own_keys.py``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from typing_extensions import override

from vllm.config import VllmConfig
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.layers.own_keys import Verified, use_own_keys
from vllm.v1.diffusion.layers.prefill_attention import StepAttention
from vllm.v1.diffusion.request.template import HOLE
from vllm.v1.diffusion.worker.causal import BlockAttention, split_at_blocks
from vllm.v1.diffusion.worker.sequences import Sequences, StagedSequences, window_ends
from vllm.v1.diffusion.worker.speculating.rows import speculating
from vllm.v1.worker.gpu.input_batch import InputBatch


class _Tails(NamedTuple):
    """The n rows that are sequences of their own because their blocks may be drafts.

    Attributes:
        sequence: Number of each row's sequence, int64 ``[n]``.
        slot: Its request's slot.
        length: Tokens of the request's blocks.
        position: The row's position.
        start: Where the block of a request begins that is not on the device yet; -1 for others.
        first: Column of that block's first mask.
    """

    sequence: np.ndarray
    slot: np.ndarray
    length: np.ndarray
    position: np.ndarray
    start: np.ndarray
    first: np.ndarray


class VerifiedAttention(BlockAttention):
    """One bidirectional sequence per block; of requests that speculate, one per row where need be."""

    block_causal = False

    def __init__(self, vllm_config: VllmConfig, canvases: CanvasStates, device: torch.device) -> None:
        super().__init__(vllm_config, canvases, device)
        use_own_keys(vllm_config)
        self._tails: _Tails | None = None

    @override
    def sequences(self, input_batch: InputBatch, captured: bool) -> Sequences:
        self._tails = None
        canvases, slots = self.canvases, input_batch.idx_mapping_np
        starts, lengths = input_batch.num_computed_tokens_np, input_batch.num_scheduled_tokens
        tails = speculating(input_batch, canvases)
        by_token = np.array([self._value(int(slot), "causal_cache") for slot in slots], dtype=bool)
        if not tails.any() and not by_token.any():
            return super().sequences(input_batch, captured)
        # Two windows of each request: what lies before its last rows, and these.
        request = np.repeat(np.arange(len(slots)), 2)
        sizes = np.stack((lengths - tails, tails), axis=1).ravel()
        begins = np.stack((starts, starts + lengths - tails), axis=1).ravel()
        tail = np.tile(np.array([False, True]), len(slots))
        used = sizes > 0
        request, sizes, begins, tail = request[used], sizes[used], begins[used], tail[used]
        single = tail | by_token[request]
        split = split_at_blocks(
            begins,
            sizes,
            np.where(single, 1, canvases.block_length.np[slots[request]]),
            np.where(single, 0, canvases.origin.np[slots[request]]),
        )
        assert split.request is not None
        sequence = np.flatnonzero(tail[split.request])
        of = request[split.request]
        if len(sequence):
            begun = [self._begun(input_batch, int(one)) for one in np.flatnonzero(tails)]
            start, first = np.full(len(slots), -1), np.zeros(len(slots), dtype=np.int64)
            for one, (start_of, first_of) in zip(np.flatnonzero(tails), begun, strict=True):
                start[one], first[one] = start_of, first_of
            mine = of[sequence]
            self._tails = _Tails(
                sequence,
                slots[mine],
                canvases.block_length.np[slots[mine]],
                split.seq_lens[sequence] - 1,
                start[mine],
                first[mine],
            )
        # Of rows whose keys only the device can count: the most there can be.
        seq_lens = np.where(tail[split.request], window_ends(input_batch)[of], split.seq_lens)
        return Sequences(of, split.query_start_loc, seq_lens.astype(np.int32))

    @override
    def adjust(self, staged: StagedSequences, input_batch: InputBatch) -> None:
        if self._tails is None:
            return
        canvases, speculation = self.canvases, self.canvases.speculation
        assert speculation is not None
        sequence, slot, length, position, start, first = async_tensor_h2d(
            np.stack(self._tails).astype(np.int64), device=self.device
        )
        by_token, ahead = (
            async_tensor_h2d(
                [self._value(s, name) for s in self._tails.slot.tolist()],
                dtype=torch.bool,
                device=self.device,
            )
            for name in ("causal_cache", "causal_draft")
        )
        new = start >= 0
        masked = canvases.masked[slot]
        # A block without masks is not drafted causally.
        first_mask = torch.where(masked.any(dim=1), masked.to(torch.int8).argmax(dim=1), 0)
        first = torch.where(new, first, first_mask)
        start = torch.where(new, start, canvases.start[slot])
        waits = speculation.waiting[slot] & ~new
        column = position - start
        known = torch.where(by_token, position + 1, position - position % length + length)
        by_itself = waits | (ahead & (column < first))
        inside = torch.where(by_itself, position + 1, start + length)
        keys = torch.where(column < 0, known, torch.where(column < length, inside, start + length))
        staged.seq_lens[sequence] = keys.to(staged.seq_lens.dtype)

    @override
    def finish(self, attention: StepAttention, input_batch: InputBatch) -> None:
        """Tells the layers which masks verify drafts."""
        canvases, speculation = self.canvases, self.canvases.speculation
        if self._tails is None or speculation is None:
            return
        slots, ends = input_batch.idx_mapping_np, window_ends(input_batch)
        lengths, row_ends = canvases.block_length.np[slots], input_batch.query_start_loc_np[1:]
        asks = (speculating(input_batch, canvases) == 2 * lengths) & ~np.isin(slots, canvases.added)
        found: list[list[Verified]] = [[] for _ in attention.block_tables]
        for length in np.unique(lengths[asks]).tolist():
            which = np.flatnonzero(asks & (lengths == length))
            rows = row_ends[which, None] - length + np.arange(length)
            staged = np.stack((which, slots[which], ends[which] - 2 * length)).astype(np.int64)
            index, slot, starts = async_tensor_h2d(staged, device=self.device)
            used = speculation.waiting[slot]
            if self.device.type == "cpu" and not used.any():
                continue
            for group, (table, size) in enumerate(zip(attention.block_tables, self.block_sizes, strict=True)):
                found[group].append(
                    Verified(
                        rows=async_tensor_h2d(rows.astype(np.int64), device=self.device),
                        starts=starts,
                        used=used,
                        longest=int(ends[which].max()) - length,
                        block_table=table[index],
                        page_size=size,
                    )
                )
        for verified, (_, layers) in zip(found, attention.tables(), strict=True):
            for name in layers:
                attention.metadata[name].verified = tuple(verified)

    def _value(self, slot: int, name: str) -> bool:
        """A switch of a slot's request."""
        decoding = self.canvases.decoding.get(slot)
        return decoding is not None and bool(decoding.values.get(name))

    def _begun(self, input_batch: InputBatch, one: int) -> tuple[int, int]:
        """Of a request that begins: where its block does, and the column of the first mask; else -1 and 0.

        Its canvas is not on the device yet.
        """
        canvases, slot = self.canvases, int(input_batch.idx_mapping_np[one])
        if slot not in canvases.added:
            return -1, 0
        known, length = int(input_batch.prefill_len_np[one]), int(canvases.block_length.np[slot])
        start = known - known % length
        decoding = canvases.decoding[slot]
        first = known
        if decoding.template is not None:
            begin = int(canvases.template_end.np[slot]) - len(decoding.template)
            given = decoding.template[known - begin :]
            first += next((i for i, token in enumerate(given) if token == HOLE), len(given))
        return start, min(first - start, length)
