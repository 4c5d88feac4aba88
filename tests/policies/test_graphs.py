# SPDX-License-Identifier: Apache-2.0
"""What a captured graph reads: fixed sizes and addresses, whatever the batch."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vllm.config import AttentionConfig, CompilationConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.diffusion.loops import cuda_graphs
from vllm.v1.diffusion.loops.cuda_graphs import capture_sizes, configure_graphs, largest_graph, refuse_graphs
from vllm.v1.diffusion.loops.elastic import ElasticDiffusionLoop, ElasticSettings
from vllm.v1.diffusion.worker.causal import split_at_blocks
from vllm.v1.diffusion.worker.sequences import GraphSequences, Sequences


@pytest.mark.parametrize("largest", [1000, 1024, 8192])
@pytest.mark.parametrize("block_length", [1, 4, 5, 32, 100])
def test_capture_sizes(block_length: int, largest: int) -> None:
    sizes = capture_sizes(block_length, largest)
    assert sizes[0] == block_length
    assert sizes[-1] == largest // block_length * block_length
    assert sizes == sorted(set(sizes))
    assert all(size % block_length == 0 for size in sizes)
    for rows, following in itertools.pairwise(sizes):
        least = following - rows <= block_length
        assert least or following - rows <= rows / (4 if rows < 256 else 8) + block_length
    assert len(sizes) <= 72


def test_a_block_longer_than_padding_is_free() -> None:
    """Where a response is one block, most do not fill it."""
    assert capture_sizes(2048, 1024) == [256, 512, 768, 1024]
    assert capture_sizes(256, 128) == [256]


@pytest.mark.parametrize(
    ("block_length", "max_num_seqs", "budget", "expected"),
    [
        (32, 8, 8192, 512),  # all rows of a full batch, each request's block and its commit
        (32, 64, 8192, 4096),  # the fall of LLaDA2.0-mini: 64 requests of 32 rows, and their commits
        (32, 256, 8192, 8192),  # a server's defaults
        (32, 1024, 16384, 8192),
        (32, 64, 2048, 2048),  # no step has more
        (4, 16, 8192, 128),
        (4, 256, 8192, 2048),  # blocks of 4 at 256 requests, and their commits
        (4, 1024, 16384, 2048),  # long chunks of prompts stay out
    ],
)
def test_the_largest_graph_follows_from_the_configuration(
    block_length: int, max_num_seqs: int, budget: int, expected: int
) -> None:
    assert largest_graph(block_length, max_num_seqs, budget) == expected


@pytest.mark.parametrize("block_length", [4, 32])
def test_no_batch_falls_off_the_graphs(block_length: int) -> None:
    """Defaults: what a batch of 2^n requests has, with one commit in 8 steps, or all in this one."""
    largest = largest_graph(block_length, 1024, 16384)
    sizes = capture_sizes(block_length, largest)
    for requests in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        steady = requests * block_length
        for rows in (steady, steady + steady // 8, 2 * steady):
            if rows > largest:
                assert rows > (8192 if block_length == 32 else 2048)
                continue
            padded = next(size for size in sizes if size >= rows)
            assert padded <= max(rows * 9 / 8 + block_length, 256)


def config(max_num_seqs: int, budget: int, **compilation: Any) -> Any:
    """What is read of an engine's configuration."""
    return SimpleNamespace(
        compilation_config=CompilationConfig(**compilation),
        scheduler_config=SimpleNamespace(max_num_seqs=max_num_seqs, max_num_batched_tokens=budget),
        model_config=SimpleNamespace(max_model_len=4096),
        attention_config=AttentionConfig(),
    )


def test_sizes_that_are_given_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "current_platform", SimpleNamespace(is_cuda_alike=lambda: True))
    chosen = config(64, 8192)
    configure_graphs(chosen, 32)
    sizes = chosen.compilation_config.cudagraph_capture_sizes
    assert sizes == capture_sizes(32, 4096)
    assert sizes[:9] == [32, 64, 96, 128, 160, 192, 224, 256, 288]
    assert sizes[-9:] == [2048, 2304, 2560, 2816, 3072, 3328, 3584, 3840, 4096]
    given = config(64, 8192, cudagraph_capture_sizes=[32, 64])
    configure_graphs(given, 32)
    assert given.compilation_config.cudagraph_capture_sizes == [32, 64]


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


def test_elastic_diffusion_has_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs that were asked for are refused by name; unasked they are switched off."""
    monkeypatch.setattr(cuda_graphs, "current_platform", SimpleNamespace(is_cuda_alike=lambda: True))
    asked = config(64, 8192, cudagraph_mode="FULL")
    asked.scheduler_config.async_scheduling = None
    asked.parallel_config = SimpleNamespace(pipeline_parallel_size=1)
    with pytest.raises(ValueError, match="cudagraph_mode='FULL' is not supported with elastic diffusion"):
        ElasticSettings().configure(asked, ElasticDiffusionLoop(), 16)
    unasked = config(64, 8192)
    refuse_graphs(unasked, "elastic diffusion")
    assert unasked.compilation_config.cudagraph_mode == CUDAGraphMode.NONE
