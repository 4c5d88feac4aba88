# SPDX-License-Identifier: Apache-2.0
"""Classifier-free guidance: the copies of canvases that a step computes with their prompts masked.

The window of a guided request goes on behind its canvas. The copy begins where the scheduler has put it, with
a KV block. Its rows have the positions of those that they are copies of, and see each other only. The rows
between canvas and copy are computed and not used.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState


class Split(NamedTuple):
    """The m sequences of a step with copies, on the host.

    Attributes:
        request: The request of the batch of each, int64 ``[m]``.
        query_start_loc: First row of each, and the end, int32 ``[m + 1]``.
        seq_lens: Keys of each, int32 ``[m]``.
        copies: Which of them are copies, int64 ``[n]``.
    """

    request: np.ndarray
    query_start_loc: np.ndarray
    seq_lens: np.ndarray
    copies: np.ndarray

    def in_parts(self, most: np.ndarray) -> Split:
        """Splits sequences that are longer than they may be.

        Args:
            most: Rows of a sequence of each request, at most, int64 ``[R]``; 0 for any number. Copies are not
                split.
        """
        size = np.diff(self.query_start_loc)
        longest = np.where(most > 0, most, size.max())[self.request]
        counts = -(-size // longest)
        first = np.cumsum(counts) - counts
        index = np.repeat(np.arange(len(size)), counts)
        nth = np.arange(len(index)) - first[index]
        query_start_loc = np.zeros(len(index) + 1, dtype=np.int32)
        query_start_loc[1:] = np.cumsum(np.minimum(longest[index], size[index] - nth * longest[index]))
        return Split(self.request[index], query_start_loc, self.seq_lens[index], first[self.copies])


class Copies(NamedTuple):
    """The n copies of a step, on the host.

    Attributes:
        requests: Which requests of the batch they belong to, int64 ``[n]``.
        offset: Rows from a row to its copy, int64 ``[n]``.
        length: Rows of each copy, int64 ``[n]``.
    """

    requests: np.ndarray
    offset: np.ndarray
    length: np.ndarray

    @classmethod
    def of(cls, input_batch: InputBatch, canvases: CanvasStates) -> Copies | None:
        """Those of a batch; None for none.

        Args:
            input_batch: The step's batch.
            canvases: The canvases of this worker's requests.
        """
        slots = input_batch.idx_mapping_np
        guided = canvases.guidance.np[slots] > 0
        if not guided.any():
            return None
        rows = np.diff(input_batch.cu_num_logits_np[: input_batch.num_reqs + 1])
        length = canvases.end.np[slots]
        offset = input_batch.num_scheduled_tokens - length
        # A request that waits for room computes one token, and no copy. Dummy batches have none either.
        requests = np.flatnonzero(guided & (rows > 0) & (offset >= length))
        if not len(requests):
            return None
        return cls(requests, offset[requests].astype(np.int64), length[requests].astype(np.int64))

    def place(self, input_batch: InputBatch, requests: RequestState) -> torch.Tensor:
        """Gives the rows of copies their positions.

        Args:
            input_batch: The step's batch; its positions are changed. Upstream has read them for the slots
                of the cache by now.
            requests: The runner's request state.

        Returns:
            Rows of copies of prompts, int64, on the device.
        """
        nth = np.repeat(np.arange(len(self.requests)), self.length)
        column = np.arange(len(nth)) - np.repeat(np.cumsum(self.length) - self.length, self.length)
        row = input_batch.query_start_loc_np[self.requests[nth]] + self.offset[nth] + column
        prompt = requests.prompt_len.np[input_batch.idx_mapping_np[self.requests]]
        device = input_batch.positions.device
        rows = async_tensor_h2d(row, dtype=torch.int64, device=device)
        positions = async_tensor_h2d(column, dtype=input_batch.positions.dtype, device=device)
        input_batch.positions.index_copy_(0, rows, positions)
        return async_tensor_h2d(row[column < prompt[nth]], dtype=torch.int64, device=device)

    def rows(self, row_requests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of logits that are computed twice.

        Args:
            row_requests: The request of each row of logits, int64 ``[N]``.

        Returns:
            The rows, ascending, and how much further on in the step each one's copy is, int64.
        """
        offset = np.zeros(int(row_requests.max(initial=-1)) + 1, dtype=np.int64)
        offset[self.requests] = self.offset
        rows = np.flatnonzero(offset[row_requests])
        return rows, offset[row_requests[rows]]

    def split(self, lengths: np.ndarray, ends: np.ndarray) -> Split:
        """Splits a batch's windows into canvases, their copies and what lies between.

        Args:
            lengths: Rows of each request's window, ``[R]``.
            ends: Keys of each request's canvas, ``[R]``.
        """
        rows = np.stack((lengths, np.zeros_like(lengths), np.zeros_like(lengths)), axis=1)
        keys = np.stack((ends, np.zeros_like(ends), np.zeros_like(ends)), axis=1)
        own = np.stack((self.length, self.offset - self.length, self.length), axis=1)
        rows[self.requests] = keys[self.requests] = own
        present = rows.reshape(-1) > 0
        request, part = np.divmod(np.flatnonzero(present), 3)
        query_start_loc = np.zeros(len(request) + 1, dtype=np.int32)
        query_start_loc[1:] = np.cumsum(rows.reshape(-1)[present])
        copies = np.flatnonzero(part == 2)
        return Split(request, query_start_loc, keys.reshape(-1)[present].astype(np.int32), copies)
