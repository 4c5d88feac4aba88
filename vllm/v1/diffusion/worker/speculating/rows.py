# SPDX-License-Identifier: Apache-2.0
"""Rows of blocks that are drafted in one step and verified in the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from typing_extensions import override

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.families import Family
from vllm.v1.diffusion.request.decoding import Decoding
from vllm.v1.diffusion.sampling.rows import RowLayout, row_counts
from vllm.v1.diffusion.worker.speculating.verification import Verification
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState

if TYPE_CHECKING:
    from torch import nn

    from vllm.config import VllmConfig
    from vllm.v1.diffusion.sampling.sampler import DenoisingSampler


class VerifiedRows(RowLayout):
    """The block's rows in a draft, and those of the masks behind it when the draft is verified."""

    def __init__(self, canvases: CanvasStates, family: Family) -> None:
        super().__init__(canvases, family)
        self._verification: Verification | None = None
        self._tails: tuple[torch.Tensor, torch.Tensor] | None = None
        """Last rows of the windows of requests that speculate, and their slots, int64."""

    @override
    def bind(self, sampler: DenoisingSampler, model: nn.Module, vllm_config: VllmConfig) -> None:
        model_config = vllm_config.model_config
        self._verification = sampler.policies.speculation = self.canvases.speculation = Verification(
            self.canvases,
            sampler.sampling_states,
            model_config.get_vocab_size(),
            cast(torch.dtype, model_config.dtype),
            model_config.max_model_len,
        )

    @override
    def add(self, slot: int, decoding: Decoding, prompt_len: int) -> None:
        if self._verification is not None:
            self._verification.add(slot, decoding)

    @override
    def begin_step(self, input_batch: InputBatch, request_states: RequestState) -> None:
        self._tails = None
        if self._verification is None:
            return
        tails = speculating(input_batch, self.canvases)
        if tails.any():
            ends = input_batch.query_start_loc_np[1 : input_batch.num_reqs + 1]
            rows = rows_before(ends, tails)
            slots = np.repeat(input_batch.idx_mapping_np, tails)
            staged = np.stack((rows, slots)).astype(np.int64)
            self._tails = tuple(async_tensor_h2d(staged, device=self.canvases.device))

    @override
    def windows_are_canvases(self, input_batch: InputBatch) -> bool:
        return self._tails is None and super().windows_are_canvases(input_batch)

    @override
    def point_logits(self, input_batch: InputBatch, request_states: RequestState, unsure: bool) -> None:
        if self._tails is None:
            return
        assert self._verification is not None
        rows, slot = input_batch.logits_indices, input_batch.expanded_idx_mapping
        start, length = self.canvases.start[slot], self.canvases.block_length.gpu[slot]
        wanted = start + input_batch.expanded_local_pos + length * self._verification.waiting[slot]
        input_batch.logits_indices = rows - (input_batch.positions[rows] - wanted).to(rows.dtype)

    @override
    def inputs(self, input_batch: InputBatch) -> dict[str, Any]:
        if self._tails is None:
            return {}
        assert self._verification is not None
        rows, slots = self._tails
        ids, positions = input_batch.input_ids, input_batch.positions
        canvases, verification = self.canvases, self._verification
        length = canvases.block_length.gpu[slots].to(torch.int64)
        column = positions[rows] - canvases.start[slots]
        behind = column >= length
        draft = verification.tokens[slots, column.clamp(0, canvases.width - 1)]
        drafted = verification.waiting[slots] & (column >= 0) & ~behind
        now = torch.where(drafted, draft.to(ids.dtype), ids[rows])
        ids[rows] = now.masked_fill(behind, canvases.mask_token_id)
        # Upstream has read the positions for the cache's slots by now.
        positions[rows] = positions[rows] - length * behind
        return {}


def speculating(input_batch: InputBatch, canvases: CanvasStates) -> np.ndarray:
    """How many of the last rows of each window are a block's, or masks behind it, at most, int64 ``[R]``."""
    speculation = canvases.speculation
    if speculation is None or not speculation.slots:
        return np.zeros(input_batch.num_reqs, dtype=np.int64)
    slots = input_batch.idx_mapping_np
    used = np.isin(slots, list(speculation.slots)) & (row_counts(input_batch) > 0)
    tails = np.minimum(2 * canvases.block_length.np[slots], input_batch.num_scheduled_tokens)
    return np.where(used, tails, 0).astype(np.int64)


def rows_before(ends: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``counts[i]`` rows before row ``ends[i]``, for each i, int64."""
    nth = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    rows: np.ndarray = np.repeat(ends - counts, counts) + nth
    return rows
