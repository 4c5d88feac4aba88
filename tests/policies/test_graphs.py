# SPDX-License-Identifier: Apache-2.0
"""What a captured graph reads: fixed sizes and addresses, whatever the batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from vllm.v1.diffusion.loops.cuda_graphs import capture_sizes
from vllm.v1.diffusion.worker.causal import split_at_blocks
from vllm.v1.diffusion.worker.sequences import GraphSequences, Sequences


@pytest.mark.parametrize("block_length", [1, 4, 5, 32, 100])
def test_capture_sizes(block_length: int) -> None:
    sizes = capture_sizes(block_length, 1024)
    assert sizes[0] == block_length and sizes[-1] <= 1024
    assert sizes == sorted(set(sizes))
    assert all(size % block_length == 0 for size in sizes)
    for rows, following in itertools.pairwise(sizes):
        least = following - rows <= block_length
        assert least or following - rows <= rows / (4 if rows < 256 else 8) + block_length
    assert sizes[-1] + max(sizes[-1] // 8, block_length) + block_length > 1024


def test_a_block_longer_than_padding_is_free() -> None:
    """Where a response is one block, most do not fill it."""
    assert capture_sizes(2048, 1024) == [256, 512, 768, 1024]
    assert capture_sizes(256, 128) == [256]


def windows(origin: int = 0) -> Sequences:
    """A block, a commit with the next block, a prompt's chunk that ends inside a block."""
    return split_at_blocks(
        starts=np.array([8, 4, 0]) + origin * np.array([1, 1, 0]),
        lengths=np.array([4, 8, 10]),
        block_lengths=np.array([4, 4, 4]),
        origins=np.full(3, origin),
    )


def test_blocks_of_windows() -> None:
    blocks = windows()
    assert blocks.request is not None
    assert blocks.request.tolist() == [0, 1, 1, 2, 2, 2]
    assert blocks.seq_lens.tolist() == [12, 8, 12, 4, 8, 10]
    assert blocks.query_start_loc.tolist() == [0, 4, 8, 12, 16, 20, 22]


def test_blocks_that_count_from_the_prompt_s_end() -> None:
    """Boundaries are where they would be without the origin, moved; a prompt's first block is short."""
    blocks = windows(origin=7)
    assert blocks.request is not None
    assert blocks.request.tolist() == [0, 1, 1, 2, 2, 2]
    assert blocks.seq_lens.tolist() == [19, 15, 19, 3, 7, 10]
    assert blocks.query_start_loc.tolist() == [0, 4, 8, 12, 15, 19, 22]


def test_a_graph_of_requests_reads_their_tables_where_they_are() -> None:
    """Sequence i is request i: two requests in a graph of four."""
    table = torch.arange(40, dtype=torch.int32).reshape(4, 10)
    graph = GraphSequences(32, (table,), torch.device("cpu"))
    requests = Sequences(None, np.array([0, 5, 12], dtype=np.int32), np.array([9, 30], dtype=np.int32))
    query_start_loc, seq_lens, (tables,), host = graph.fill(requests, 4, (table,))
    assert query_start_loc.tolist() == host.tolist() == [0, 5, 12, 12, 12]
    assert seq_lens.tolist() == [9, 30, 0, 0]
    assert tables.data_ptr() == table.data_ptr()


def test_a_graph_sees_the_batch_at_fixed_addresses() -> None:
    table = torch.arange(40, dtype=torch.int32).reshape(4, 10)
    graph = GraphSequences(32, (table,), torch.device("cpu"))
    blocks = windows()
    first = graph.fill(blocks, 24, (table[:3],))
    query_start_loc, seq_lens, (tables,), host = first
    assert query_start_loc.tolist() == [*blocks.query_start_loc, *[22] * 18]
    assert seq_lens.tolist() == [*blocks.seq_lens, *[0] * 18]
    assert torch.equal(tables[:6], table[blocks.request])
    assert torch.equal(host, query_start_loc)
    one = split_at_blocks(np.array([4]), np.array([4]), np.array([4]), np.array([0]))
    again = graph.fill(one, 24, (table[3:],))
    for mine, before in ((again[0], query_start_loc), (again[1], seq_lens), (again[2][0], tables)):
        assert mine.data_ptr() == before.data_ptr() and mine.shape == before.shape
    assert seq_lens.tolist() == [8] + [0] * 23  # nothing of the batch before is left
    assert torch.equal(tables[0], table[3])


def test_a_batch_larger_than_its_graph_is_refused() -> None:
    graph = GraphSequences(8, (), torch.device("cpu"))
    with pytest.raises(AssertionError):
        graph.fill(windows(), 4, ())
