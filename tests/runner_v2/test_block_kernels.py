# SPDX-License-Identifier: Apache-2.0
"""Staged writes and block tables, through upstream's own classes."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.runner_v2.batches import int32
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.buffer_utils import FusedStagedWriter, StagedWriteTensor

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
@pytest.mark.parametrize("uva", [True, False])
def test_staged_writes(dtype: Any, uva: bool) -> None:
    rng = np.random.default_rng(0)
    tensor = StagedWriteTensor((9, 40), dtype, CPU, uva_instead_of_gpu=uva)
    want = tensor.gpu.clone()
    for _ in range(5):
        for _ in range(int(rng.integers(0, 30))):
            row, start = int(rng.integers(9)), int(rng.integers(40))
            values = rng.integers(-9, 9, int(rng.integers(0, 41 - start))).tolist()
            tensor.stage_write(row, start, values)
            for k, value in enumerate(values):
                want[row, start + k] = value
        tensor.apply_write()
        assert tensor.gpu.equal(want)


def test_staged_elements() -> None:
    tensor = StagedWriteTensor(8, torch.int32, CPU)
    for row in (3, 0, 3):
        tensor.stage_write_elem(row, row * 10 + 1)
    tensor.apply_write()
    assert tensor.gpu.tolist() == [1, 0, 0, 31, 0, 0, 0, 0]


def test_a_write_outside_is_refused() -> None:
    tensor = StagedWriteTensor((2, 4), torch.int32, CPU)
    tensor.stage_write(1, 3, [1, 2])
    with pytest.raises(RuntimeError, match="outside the output"):
        tensor.apply_write()


def test_grouped_writes() -> None:
    rng = np.random.default_rng(1)
    tensors = [StagedWriteTensor((6, n), torch.int32, CPU) for n in (5, 17, 8)]
    want = [t.gpu.clone() for t in tensors]
    pointers = torch.tensor([t.gpu.data_ptr() for t in tensors], dtype=torch.uint64)
    strides = torch.tensor([t.gpu.stride(0) for t in tensors])
    writer = FusedStagedWriter(CPU, 64)
    for _ in range(4):
        for tensor, expected in zip(tensors, want, strict=True):
            for _ in range(int(rng.integers(0, 6))):
                row, start = int(rng.integers(6)), int(rng.integers(expected.shape[1]))
                values = rng.integers(0, 99, expected.shape[1] - start).tolist()
                tensor.stage_write(row, start, values)
                expected[row, start:] = int32(values)
        writer.apply(tensors, pointers, strides)
        for tensor, expected in zip(tensors, want, strict=True):
            assert tensor.gpu.equal(expected)


def tables(groups: Any, **context: Any) -> Any:
    """Block tables with random blocks, and the same as a list of lists."""
    sizes = [16, 32, 4][:groups]
    made = BlockTables(
        block_sizes=sizes,
        max_num_reqs=7,
        max_num_batched_tokens=256,
        max_num_blocks_per_group=[256 // size for size in sizes],
        device=CPU,
        **context,
    )
    rng = np.random.default_rng(groups)
    want = {}
    for slot in range(7):
        blocks = tuple(rng.permutation(1000)[: 256 // size].tolist() for size in sizes)
        half = tuple(b[: len(b) // 2] for b in blocks)
        made.append_block_ids(slot, half, overwrite=True)
        made.append_block_ids(slot, tuple(b[len(b) // 2 :] for b in blocks), overwrite=False)
        want[slot] = blocks
    made.apply_staged_writes()
    return made, want, sizes


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_gather(groups: int) -> None:
    made, want, _ = tables(groups)
    order = [5, 0, 3]
    out = made.gather_block_tables(torch.tensor(order), num_reqs_padded=3)
    for group in range(groups):
        for row, slot in enumerate(order):
            assert out[group][row].tolist() == want[slot][group]


@pytest.mark.parametrize("stride", [2**62, 2**63 - 1, -1])
def test_a_stride_whose_product_does_not_fit_is_refused(stride: int) -> None:
    """It wrapped round, and passed for a small one (found under UBSan)."""
    pointers, ids = torch.zeros(4, dtype=torch.uint64), torch.zeros(4, dtype=torch.int64)
    gather = torch.ops.vllm_diffusion.runner_gather_block_tables
    with pytest.raises(RuntimeError, match="out of range"):
        gather(ids, pointers, pointers, ids, ids, stride, 1, 4)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("enabled", [True, False])
def test_slots(groups: int, enabled: bool) -> None:
    made, want, sizes = tables(groups, slot_mapping_enabled=[True] * (groups - 1) + [enabled])
    order, starts = [2, -1, 6], [0, 40, 43, 143]
    pos = torch.cat([torch.arange(7, 47), torch.arange(3), torch.arange(156, 256)])
    got = made.compute_slot_mappings(torch.tensor(order), int32(starts), pos, num_tokens_padded=256)
    for group, size in enumerate(sizes):
        expected = [-1] * 256
        for row, slot in enumerate(order):
            if slot < 0 or not (enabled or group < groups - 1):
                continue
            for t in range(starts[row], starts[row + 1]):
                p = pos[t].item()
                expected[t] = want[slot][group][p // size] * size + p % size
        assert got[group].tolist() == expected


@pytest.mark.parametrize("interleave", [1, 4])
def test_slots_shared_by_ranks(interleave: int) -> None:
    """Context parallelism: every token has its slot on exactly one rank, and slots are distinct."""
    seen = {}
    for rank in range(2):
        made, want, sizes = tables(
            2, cp_size=2, cp_rank=rank, cp_interleave=interleave, dcp_sharded=[True, False]
        )
        pos = torch.arange(200)
        got = made.compute_slot_mappings(torch.tensor([4]), int32([0, 200]), pos, 200)
        for p in range(200):
            slot = got[0, p].item()
            if slot >= 0:
                assert p not in seen
                seen[p] = rank
                assert p // interleave % 2 == rank
                assert slot // sizes[0] == want[4][0][p // (2 * sizes[0])]
            assert got[1, p].item() == want[4][1][p // sizes[1]] * sizes[1] + p % sizes[1]
        local = got[0][got[0] >= 0]
        assert len(set(local.tolist())) == len(local) == 100
    assert sorted(seen) == list(range(200))


def test_a_position_beyond_the_table_is_refused() -> None:
    made, _, _ = tables(1)
    with pytest.raises(RuntimeError, match="beyond its block table"):
        made.compute_slot_mappings(torch.tensor([0]), int32([0, 1]), torch.tensor([256]), 1)
