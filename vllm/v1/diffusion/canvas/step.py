# SPDX-License-Identifier: Apache-2.0
"""What a denoising step works on: rows of logits and the canvas positions they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState


class Layout(Protocol):
    """What a step asks the mode's ``sampling.rows.RowLayout``."""

    def covers(
        self, request_states: RequestState, slots: torch.Tensor, window_end: torch.Tensor
    ) -> torch.Tensor:
        """Whether windows cover the open blocks, bool ``[R]``."""

    def active(self, input_batch: InputBatch, slots: torch.Tensor, whole: bool) -> torch.Tensor:
        """Rows that the step may unmask, bool ``[N]``."""


@dataclass(frozen=True)
class DenoisingStep:
    """The N rows of logits of the R requests of a batch that denoise.

    Attributes:
        requests: Their places in the batch, int64 ``[R]``, on the host; ``index`` is
            the same on the device.
        slots: Their slots, ``[R]``; ``slots_np`` is the same on the host.
        row_start: First row of each, and the end, int32 ``[R + 1]``.
        row_counts: Rows of each, int64 ``[R]``, on the host.
        row_slot: Slot of each row, ``[N]``.
        row_column: Column of the canvas that a row belongs to, int64 ``[N]``.
        whole: Whether every request has a row for each column of the canvas.
        covered: Whether the window covers the request's block, bool ``[R]``. Where
            it does not, the block has finished in the step before: this step only
            commits it, and the canvas, of the next block, waits.
        may_miss_block: Whether some windows may not cover their blocks.
        active: Rows whose position is still masked and covered, bool ``[N]``.
    """

    requests: np.ndarray
    index: torch.Tensor
    slots: torch.Tensor
    slots_np: np.ndarray
    row_start: torch.Tensor
    row_counts: np.ndarray
    row_slot: torch.Tensor
    whole: bool
    covered: torch.Tensor
    may_miss_block: bool
    active: torch.Tensor
    _local_pos: torch.Tensor

    @classmethod
    def of(
        cls,
        input_batch: InputBatch,
        canvases: CanvasStates,
        layout: Layout,
        request_states: RequestState,
        overlaps: bool,
        may_miss_block: bool,
    ) -> DenoisingStep | None:
        """Reads a batch; None where no request denoises.

        Args:
            input_batch: The step's batch.
            canvases: The canvases of this worker's requests.
            layout: Which rows count.
            request_states: The runner's request state.
            overlaps: Whether a window may have been scheduled before it was known
                that the step before it finishes the block.
            may_miss_block: Whether a window may not cover its block, for that reason or another.
        """
        num_reqs = input_batch.num_reqs
        counts = np.diff(input_batch.cu_num_logits_np[: num_reqs + 1])
        requests = np.flatnonzero(counts)
        if not len(requests):
            return None
        device = input_batch.idx_mapping.device
        if len(requests) == num_reqs:
            index, slots = canvases.numbers[:num_reqs], input_batch.idx_mapping[:num_reqs]
            row_start = input_batch.cu_num_logits[: num_reqs + 1]
        else:
            # Requests without rows lie between: the first row of each, and the end, stay the same.
            bounds = async_tensor_h2d(np.append(requests, num_reqs), dtype=torch.int64, device=device)
            index, row_start = bounds[:-1], input_batch.cu_num_logits[bounds]
            slots = input_batch.idx_mapping[index]
        row_slot = input_batch.expanded_idx_mapping
        row_counts = counts[requests]
        whole = bool((row_counts == canvases.width).all())
        if may_miss_block:
            covered = layout.covers(request_states, slots, input_batch.seq_lens[index])
        else:
            covered = canvases.always[: len(requests)]
        active = layout.active(input_batch, slots, whole)
        if overlaps:
            active &= torch.repeat_interleave(covered, row_start.diff(), output_size=len(row_slot))
        return cls(
            requests=requests,
            index=index,
            slots=slots,
            slots_np=input_batch.idx_mapping_np[requests],
            row_start=row_start,
            row_counts=row_counts,
            row_slot=row_slot,
            whole=whole,
            covered=covered,
            may_miss_block=may_miss_block,
            active=active,
            _local_pos=input_batch.expanded_local_pos,
        )

    @cached_property
    def row_column(self) -> torch.Tensor:
        """See above; most steps do without."""
        return self._local_pos.to(torch.int64)

    def for_requests(self, values: torch.Tensor) -> torch.Tensor:
        """Those of the R requests, ``[R, ...]``, of values of the batch's."""
        return values if len(values) == len(self.requests) else values[self.index]

    @cached_property
    def request_np(self) -> np.ndarray:
        """Which of the R requests a row belongs to, int64 ``[N]``, on the host."""
        return np.repeat(np.arange(len(self.requests)), self.row_counts)

    def rows_of(self, requests: np.ndarray) -> np.ndarray:
        """Rows of some of the requests, ascending, int64, on the host.

        Args:
            requests: Which of the R requests, bool ``[R]``.
        """
        return np.flatnonzero(requests[self.request_np])
