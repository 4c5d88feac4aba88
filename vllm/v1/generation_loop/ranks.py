# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a worker group tell each other about a plug-in's failure."""

from __future__ import annotations

import torch
import torch.distributed as dist

from vllm.distributed import parallel_state


def is_last_stage() -> bool:
    """Whether this is the last pipeline stage, which has hidden states and logits."""
    return not _parallel() or parallel_state.get_pp_group().is_last_rank


def agree(failure: str | None) -> str | None:
    """Tells the other tensor-parallel ranks of a failure, and hears of theirs.

    One small message between hosts; a device is not waited for. All ranks must call it.

    Args:
        failure: This rank's failure; None for none.

    Returns:
        The first failure among the ranks; None if all are well.
    """
    if not _parallel():
        return failure
    group = parallel_state.get_tp_group()
    if group.world_size == 1:
        return failure
    failed = torch.tensor([failure is not None], dtype=torch.int32)
    dist.all_reduce(failed, op=dist.ReduceOp.MAX, group=group.cpu_group)
    if not failed.item():
        return None
    failures: list[str | None] = [None] * group.world_size
    dist.all_gather_object(failures, failure, group=group.cpu_group)
    return next(f for f in failures if f is not None)


def _parallel() -> bool:
    """Whether this process has worker groups; a test's may have none."""
    return bool(parallel_state.model_parallel_is_initialized())  # type: ignore[no-untyped-call]
