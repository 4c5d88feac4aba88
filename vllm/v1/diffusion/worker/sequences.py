# SPDX-License-Identifier: Apache-2.0
"""A batch of windows as an attention backend sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from vllm.config import VllmConfig
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.layers.prefill_attention import PrefillAttention, StepAttention
from vllm.v1.diffusion.sampling.rows import row_counts
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.utils import AttentionGroup


@dataclass(frozen=True)
class Sequences:
    """The n sequences of a batch's windows, in order, on the host.

    Attributes:
        request: Index of the sequence's request in the batch, int64 ``[n]``; None: sequence i is
            request i.
        query_start_loc: First row of each sequence, and the end, int32 ``[n + 1]``.
        seq_lens: End of each sequence, int32 ``[n]``.
    """

    request: np.ndarray | None
    query_start_loc: np.ndarray
    seq_lens: np.ndarray

    @classmethod
    def of_requests(cls, input_batch: InputBatch, ends: np.ndarray) -> Sequences:
        """One sequence per request, each up to its end in ``ends``, ``[R]``."""
        starts = input_batch.query_start_loc_np[: input_batch.num_reqs + 1]
        return cls(request=None, query_start_loc=starts, seq_lens=ends.astype(np.int32))

    def staged(self, input_batch: InputBatch, block_tables: tuple[torch.Tensor, ...]) -> StagedSequences:
        """The same on the device.

        Args:
            input_batch: The step's batch.
            block_tables: The requests' block tables, ``[requests, width]`` each.
        """
        device = input_batch.positions.device
        if self.request is None:
            query_start_loc = input_batch.query_start_loc[: len(self.query_start_loc)]
        else:
            rows = async_tensor_h2d(self.request, dtype=torch.int64, device=device)
            query_start_loc = async_tensor_h2d(self.query_start_loc, device=device)
            block_tables = tuple(table[rows] for table in block_tables)
        return StagedSequences(
            query_start_loc,
            async_tensor_h2d(self.seq_lens, device=device),
            block_tables,
            torch.from_numpy(self.query_start_loc),
        )


class StagedSequences(NamedTuple):
    """Sequences on the device.

    Attributes:
        query_start_loc: int32 ``[n + 1]``.
        seq_lens: int32 ``[n]``.
        block_tables: ``[n, width]`` each.
        query_start_loc_cpu: The same as ``query_start_loc``, on the host.
    """

    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: tuple[torch.Tensor, ...]
    query_start_loc_cpu: torch.Tensor


class Attention:
    """Makes sequences of a batch's windows, for one ``build_attn_metadata`` call.

    Attributes:
        vllm_config: The engine's configuration.
        canvases: The canvases of this worker's requests.
        device: Where the model runs.
        prefill_attention: Which steps our block-causal kernel takes; None where it takes none.
        block_sizes: Tokens of an entry of each of the runner's block tables.
    """

    block_causal: ClassVar[bool] = False
    """Whether a position sees up to the end of its own block, and no further."""
    prefill_attention: PrefillAttention | None = None
    block_sizes: tuple[int, ...] = ()

    def __init__(self, vllm_config: VllmConfig, canvases: CanvasStates, device: torch.device) -> None:
        """Makes it.

        Args:
            vllm_config: The engine's configuration.
            canvases: The canvases of this worker's requests.
            device: Where the model runs.
        """
        self.vllm_config = vllm_config
        self.canvases = canvases
        self.device = device

    def begin(self, attn_groups: list[list[AttentionGroup]]) -> None:
        """Called once, before the first step and any capture.

        Args:
            attn_groups: The runner's attention layers, in groups.
        """

    def sequences(self, input_batch: InputBatch, captured: bool) -> Sequences:
        """A batch's sequences: by default one per request, which ends with its window.

        Args:
            input_batch: The step's batch.
            captured: Whether a graph runs the batch or is being captured.
        """
        return Sequences.of_requests(input_batch, window_ends(input_batch))

    def graph_shape(self, input_batch: InputBatch) -> tuple[int, int]:
        """How many sequences the graph of a batch was captured for, and rows of the longest one."""
        return input_batch.num_reqs_after_padding, input_batch.num_tokens_after_padding

    def adjust(self, staged: StagedSequences, input_batch: InputBatch) -> None:
        """Changes what only the device knows of a step's sequences, in place.

        Args:
            staged: The sequences.
            input_batch: The step's batch.
        """

    def causal(self, sequences: Sequences, count: int, captured: bool) -> bool | torch.Tensor:
        """Whether a row sees the rows behind it in its sequence: False if it does.

        A mode with passes that are causal by token answers for each sequence: int32 ``[count]`` on
        the device, 1 for a causal one; at a fixed address where a graph reads it.

        Args:
            sequences: The batch's.
            count: Sequences with padding.
            captured: Whether a graph runs the batch or is being captured.
        """
        return False

    def finish(self, attention: StepAttention, input_batch: InputBatch) -> None:
        """Changes the metadata of a step that no graph runs.

        Args:
            attention: What upstream built; its metadata is changed.
            input_batch: The step's batch.
        """


class GraphSequences:
    """Sequences for a captured graph: at fixed addresses, as many as the graph has.

    Those behind the last one of a batch are empty. Everything that depends on the batch is in one
    buffer, filled by one copy from the host.
    """

    def __init__(self, most: int, block_tables: tuple[torch.Tensor, ...], device: torch.device) -> None:
        """Makes the buffers.

        Args:
            most: Sequences of the largest graph.
            block_tables: The runner's block tables, one a group of layers, for their widths.
            device: Where the graphs run.
        """
        self._most = most
        self._staged = torch.zeros(3 * most + 1, dtype=torch.int32, device=device)
        self._query_start_loc = self._staged[: most + 1]
        self._seq_lens = self._staged[most + 1 : 2 * most + 1]
        self._request = self._staged[2 * most + 1 :]
        self._block_tables = tuple(table.new_zeros(most, table.shape[1]) for table in block_tables)

    def fill(
        self, sequences: Sequences, count: int, block_tables: tuple[torch.Tensor, ...]
    ) -> StagedSequences:
        """Writes a batch's sequences.

        Args:
            sequences: The batch's.
            count: Sequences of the graph that will run, T.
            block_tables: The requests' block tables, ``[requests, width]`` each, at fixed addresses.
        """
        used, most = len(sequences.seq_lens), self._most
        assert used <= count <= most
        staged = np.zeros(3 * most + 1, dtype=np.int32)
        staged[: used + 1] = sequences.query_start_loc
        staged[used + 1 : most + 1] = sequences.query_start_loc[-1]
        staged[most + 1 : most + 1 + used] = sequences.seq_lens
        if sequences.request is not None:
            staged[2 * most + 1 : 2 * most + 1 + used] = sequences.request
        async_tensor_h2d(staged, out=self._staged)
        if sequences.request is not None:
            block_tables = tuple(
                torch.index_select(table, 0, self._request[:count], out=mine[:count])
                for table, mine in zip(block_tables, self._block_tables, strict=True)
            )
        return StagedSequences(
            self._query_start_loc[: count + 1],
            self._seq_lens[:count],
            block_tables,
            torch.from_numpy(staged[: count + 1]),
        )


def window_ends(input_batch: InputBatch) -> np.ndarray:
    """Where each request's window ends, int64 ``[R]``."""
    ends: np.ndarray = input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens
    return ends


def canvas_rows(input_batch: InputBatch) -> np.ndarray:
    """Positions of each request's canvas that a step computes, int64 ``[R]``."""
    counts = row_counts(input_batch)
    # A dummy batch has rows of logits too, but no canvas.
    return counts if input_batch.num_draft_tokens else np.zeros_like(counts)


def padded(lengths: np.ndarray, num_sequences: int) -> torch.Tensor:
    """The lengths on the host, 0 for sequences of padding."""
    padded = np.zeros(num_sequences, dtype=np.int32)
    padded[: len(lengths)] = lengths
    return torch.from_numpy(padded)
