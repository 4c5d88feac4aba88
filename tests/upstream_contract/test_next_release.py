"""What the overlay does anew for the release after the pin; see ``patches/next/overlay``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from build_support import paths
from build_support.errors import BuildError
from build_support.home import following
from tests.upstream_contract.overlay_source import load

pytest.importorskip("vllm._diffusion_C", reason="the kernels are not built")

try:
    NEXT = following(paths.ROOT).version
except BuildError:
    NEXT = ""
if load("vllm:__version__").partition("+")[0] != NEXT:
    pytest.skip("this is the pinned release", allow_module_level=True)

from vllm.v1.diffusion.core.scheduler import DiffusionScheduler
from vllm.v1.worker.cpu import runner_kernels
from vllm.v1.worker.gpu import block_table, input_batch


@pytest.fixture(autouse=True)
def registered() -> None:
    runner_kernels.register()


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("cleared", [0, 1, 3])
def test_blocks_below_a_sliding_window_become_the_null_block(cleared: int) -> None:
    reach, block_size = 20, 16
    tables = block_table.BlockTables(  # type: ignore[call-arg]  # the next release's
        block_sizes=[block_size, block_size],
        max_num_reqs=3,
        max_num_batched_tokens=64,
        max_num_blocks_per_group=[8, 8],
        device=torch.device("cpu"),
        sliding_window_reach=[reach, 0],
    )
    for slot in range(3):
        blocks = [10 * slot + n for n in range(1, 6)]
        tables.append_block_ids(slot, (blocks, blocks), overwrite=True)
    tables.apply_staged_writes()
    first = int32(0, 0, reach + cleared * block_size + 5)
    order = torch.tensor([2, 1], dtype=torch.int32)
    windowed, whole = tables.gather_block_tables(order, 2, num_computed_tokens=first)  # type: ignore[call-arg]  # the next release's
    assert windowed[0, :5].tolist() == [0] * cleared + [21, 22, 23, 24, 25][cleared:]
    assert windowed[1, :5].tolist() == whole[1, :5].tolist() == [11, 12, 13, 14, 15]
    assert whole[0, :5].tolist() == [21, 22, 23, 24, 25]


def test_draft_tokens_are_kept_with_the_step() -> None:
    kept = torch.full((3, 2), -1)
    total = int32(4, 4, 4)
    input_batch.post_update(  # type: ignore[call-arg]  # the next release's
        int32(2, -1),
        int32(3, 3, 3),
        torch.zeros(3, 1, dtype=torch.int64),
        None,
        torch.tensor([[7], [8]]),
        int32(1, 1),
        int32(0, 0),
        int32(0, 1, 2),
        torch.zeros(3, 9, dtype=torch.int32),
        total,
        torch.tensor([[5, 6], [1, 2]]),
        kept,
    )
    assert kept.tolist() == [[-1, -1], [-1, -1], [5, 6]]
    assert total.tolist() == [4, 4, 5]


def test_failed_policies_are_errors_of_their_requests() -> None:
    plan = SimpleNamespace(decoding=SimpleNamespace(algorithm="calm"))
    scheduler: Any = SimpleNamespace(_plans={"a": plan, "b": plan}, grammar_compile_error_reqs={})
    output: Any = SimpleNamespace(policy_failures={"b": "select() raised", "ended": "select() raised"})
    reported = DiffusionScheduler._fail_requests(scheduler, output)
    assert reported == {"b": "diffusion_algorithm='calm': select() raised (request b)"}
    (error,) = scheduler.grammar_compile_error_reqs.values()
    assert (error.code, error.message) == ("policy_error", reported["b"])
