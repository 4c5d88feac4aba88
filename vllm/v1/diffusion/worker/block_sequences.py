# SPDX-License-Identifier: Apache-2.0
"""How a batch of windows looks to an attention backend: one sequence a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.utils import AttentionGroup


@dataclass(frozen=True)
class BlockSequences:
    """The blocks of a batch's windows, in order.

    Attributes:
        request: Index of the block's request in the batch, int64 ``[n]``.
        query_start_loc: First row of each block, and the end, int32 ``[n + 1]``.
        seq_lens: End of each block, int32 ``[n]``.
    """

    request: np.ndarray
    query_start_loc: np.ndarray
    seq_lens: np.ndarray

    @classmethod
    def of(cls, starts: np.ndarray, lengths: np.ndarray, block_lengths: np.ndarray) -> BlockSequences:
        """Splits windows ``[start, start + length)`` at multiples of the block."""
        ends = starts + lengths
        first = starts // block_lengths
        counts = -(-ends // block_lengths) - first
        request = np.repeat(np.arange(len(starts)), counts)
        nth = np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts, counts)
        seq_lens = np.minimum((first[request] + nth + 1) * block_lengths[request], ends[request]).astype(
            np.int32
        )
        before = np.concatenate(([0], np.cumsum(lengths)[:-1])) - starts
        query_start_loc = np.zeros(len(request) + 1, dtype=np.int32)
        query_start_loc[1:] = seq_lens + before[request]
        return cls(request, query_start_loc, seq_lens)


def make_room(attn_groups: list[list[AttentionGroup]], sequences: int) -> None:
    """Lets FlashAttention 3's builders plan for as many sequences as a step may have.

    With whole-step graphs they copy every step's plan to a buffer of theirs, which upstream makes
    for one sequence a request or row of a graph. Before the first capture.

    Args:
        attn_groups: The runner's attention layers, in groups.
        sequences: Sequences of a step, at most.
    """
    for group in (group for groups in attn_groups for group in groups):
        builder: Any = group.get_metadata_builder(0)
        plan = getattr(builder, "scheduler_metadata", None)
        # A counter, and four numbers a sequence, sequences rounded up to four.
        needed = 1 + 4 * (-(-sequences // 4) * 4)
        if plan is not None and len(plan) < needed:
            builder.scheduler_metadata = plan.new_zeros(needed)


class GraphSequences:
    """The same for a captured graph: at fixed addresses, as many as the graph has rows.

    A sequence has at least one row, so a graph of T rows never needs more than T
    sequences; those behind the last one are empty. Everything that depends on the
    batch is in one buffer, filled by one copy from the host.
    """

    def __init__(
        self, most: int, num_reqs: int, block_tables: tuple[torch.Tensor, ...], device: torch.device
    ) -> None:
        """Makes the buffers.

        Args:
            most: Rows of the largest graph.
            num_reqs: Requests that may run at a time.
            block_tables: The runner's block tables, one a group of layers, for their widths.
            device: Where the graphs run.
        """
        self._most = most
        self._staged = torch.zeros(3 * most + 1, dtype=torch.int32, device=device)
        self._query_start_loc = self._staged[: most + 1]
        self._seq_lens = self._staged[most + 1 : 2 * most + 1]
        self._request = self._staged[2 * most + 1 :]
        self._block_tables = tuple(table.new_zeros(most, table.shape[1]) for table in block_tables)
        self.request_seq_lens = torch.zeros(num_reqs, dtype=torch.int32, device=device)
        """Room for one length a request, where sequences are requests: int32 ``[num_reqs]``."""

    def fill(
        self, sequences: BlockSequences, rows: int, block_tables: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...], torch.Tensor]:
        """Writes a batch's sequences.

        Args:
            sequences: The batch's.
            rows: Rows of the graph that will run, T.
            block_tables: The requests' block tables, ``[requests, width]`` each.

        Returns:
            ``query_start_loc`` int32 ``[T + 1]``, ``seq_lens`` int32 ``[T]`` and block tables
            ``[T, width]`` on the device, and ``query_start_loc`` on the host.
        """
        used, most = len(sequences.request), self._most
        assert used <= rows <= most
        staged = np.zeros(3 * most + 1, dtype=np.int32)
        staged[: used + 1] = sequences.query_start_loc
        staged[used + 1 : most + 1] = sequences.query_start_loc[-1]
        staged[most + 1 : most + 1 + used] = sequences.seq_lens
        staged[2 * most + 1 : 2 * most + 1 + used] = sequences.request
        async_tensor_h2d(staged, out=self._staged)
        tables = tuple(
            torch.index_select(table, 0, self._request[:rows], out=mine[:rows])
            for table, mine in zip(block_tables, self._block_tables, strict=True)
        )
        host = torch.from_numpy(staged[: rows + 1])
        return self._query_start_loc[: rows + 1], self._seq_lens[:rows], tables, host
