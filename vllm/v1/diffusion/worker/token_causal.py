# SPDX-License-Identifier: Apache-2.0
"""Sequences of windows that are causal by token or bidirectional.

An attention backend takes one kind per call: FlashAttention 3 has no flag per sequence. A step whose windows
are all causal is one causal call. In other steps a causal window is one sequence per row, each over the keys
up to its own. That is causal attention with any backend. On a GPU a kernel of ours takes such windows whole,
where it can and no graph runs.
"""

from __future__ import annotations

import numpy as np
import torch
from typing_extensions import override

from vllm.config import VllmConfig
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.layers.prefill_attention import BlockWindows, StepAttention
from vllm.v1.diffusion.worker.causal import make_room
from vllm.v1.diffusion.worker.sequences import Attention, Sequences, StagedSequences
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.utils import AttentionGroup


class TokenCausalAttention(Attention):
    """One sequence per bidirectional window; of causal ones, where they are mixed, one per row."""

    block_causal = True

    def __init__(self, vllm_config: VllmConfig, canvases: CanvasStates, device: torch.device) -> None:
        super().__init__(vllm_config, canvases, device)
        self._all_causal = False
        self._drafted: torch.Tensor | None = None

    @override
    def begin(self, attn_groups: list[list[AttentionGroup]]) -> None:
        make_room(attn_groups, self.vllm_config.scheduler_config.max_num_batched_tokens)

    @override
    def sequences(self, input_batch: InputBatch, captured: bool) -> Sequences:
        causal, drafts = self._kinds(input_batch)
        starts, lengths = input_batch.num_computed_tokens_np, input_batch.num_scheduled_tokens
        self._all_causal = bool(causal.all()) and not captured
        self._drafted = None
        split = (causal | drafts) & (not self._all_causal)
        sequences = split_into_rows(starts, lengths, split)
        if drafts.any():
            assert sequences.request is not None
            ends = starts + lengths
            of_draft = drafts[sequences.request]
            causal_lens = np.where(of_draft, sequences.seq_lens, 0)
            lens = np.where(of_draft, ends[sequences.request], sequences.seq_lens)
            slot = np.where(of_draft, input_batch.idx_mapping_np[sequences.request], 0)
            self._drafted = async_tensor_h2d(
                np.stack((causal_lens, slot)).astype(np.int64), device=self.device
            )
            sequences = Sequences(sequences.request, sequences.query_start_loc, lens.astype(np.int32))
        return sequences

    @override
    def adjust(self, staged: StagedSequences, input_batch: InputBatch) -> None:
        # Whether a draft is complete, and verified by this step, only the device knows.
        if self._drafted is None:
            return
        causal_lens, slot = self._drafted
        lens = staged.seq_lens[: len(slot)]
        verified = (causal_lens > 0) & ~self.canvases.masked[slot].any(dim=1)
        lens.copy_(torch.where(verified, causal_lens.to(lens.dtype), lens))

    @override
    def graph_shape(self, input_batch: InputBatch) -> tuple[int, int]:
        return input_batch.num_tokens_after_padding, self.canvases.width

    @override
    def causal(self, sequences: Sequences, count: int, captured: bool) -> bool:
        return self._all_causal

    @override
    def finish(self, attention: StepAttention, input_batch: InputBatch) -> None:
        prefill = self.prefill_attention
        causal, drafts = self._kinds(input_batch)
        if prefill is None or self._all_causal or not causal.any():
            return
        ends = input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens
        # Blocks of one token are causal, and one that holds the sequence is bidirectional.
        lengths = np.where(causal, 1, ends)
        if not prefill.wants(lengths):
            return
        prefill.attach(attention, input_batch, lengths)
        if drafts.any():
            slots = input_batch.idx_mapping[: input_batch.num_reqs]
            flags = async_tensor_h2d(drafts, dtype=torch.bool, device=self.device)
            verified = flags & ~self.canvases.masked[slots].any(dim=1)
            for metadata in attention.metadata.values():
                windows: BlockWindows = metadata.block_windows
                windows.block_length.masked_fill_(verified, 1)

    def _kinds(self, input_batch: InputBatch) -> tuple[np.ndarray, np.ndarray]:
        """Which windows are causal, and which hold drafts, which may be either, bool ``[R]``.

        A window with as many rows of logits as positions denoises; any other is known tokens only.
        """
        slots = input_batch.idx_mapping_np
        rows = np.diff(input_batch.cu_num_logits_np[: len(slots) + 1])
        decoding = [self.canvases.decoding.get(int(slot)) for slot in slots]
        verifies = np.array([d is not None and d.verifies for d in decoding], dtype=bool)
        by_token = np.array([d is None or d.causal for d in decoding], dtype=bool)
        seeds = np.array([d is not None and (d.seeded or d.verifies) for d in decoding], dtype=bool)
        # A seed has one row of logits, also where its window is one token.
        denoises = (rows == input_batch.num_scheduled_tokens) & ~(seeds & (rows == 1))
        return ~denoises & by_token, denoises & verifies


def split_into_rows(starts: np.ndarray, lengths: np.ndarray, split: np.ndarray) -> Sequences:
    """Windows ``[start, start + length)``, some of them as one sequence per row.

    Args:
        starts: First position of each window, ``[R]``.
        lengths: Positions of each, ``[R]``.
        split: Which are split, bool ``[R]``.
    """
    counts = np.where(split, lengths, 1)
    request = np.repeat(np.arange(len(starts)), counts)
    nth = np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts, counts)
    size = np.where(split, 1, lengths)[request]
    seq_lens = starts[request] + np.where(split[request], nth + 1, lengths[request])
    query_start_loc = np.zeros(len(request) + 1, dtype=np.int32)
    query_start_loc[1:] = np.cumsum(size)
    return Sequences(request, query_start_loc, seq_lens.astype(np.int32))
