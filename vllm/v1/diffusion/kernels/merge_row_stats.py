# SPDX-License-Identifier: Apache-2.0
"""``merge_row_stats``: statistics of whole rows from those of shares of the vocabulary."""

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels import library as _library  # noqa: F401  loads the compiled operators
from vllm.v1.diffusion.kernels.row_stats import RowStats

__all__ = ["MOST_IDS", "merge_row_stats", "share_numbers"]

MOST_IDS = 1 << 24
"""Ids that a float32 holds without rounding: the largest vocabulary."""


def share_numbers(share: Tensor, stats: RowStats, first: int) -> Tensor:
    """What the other ranks need to know of a share of each row.

    Args:
        share: ``[N, V']``, the logits of the ids from ``first`` on, in any dtype.
        stats: Their statistics, nothing being drawn, at ``stat_temperature`` 1.
        first: The share's first id.

    Returns:
        ``[N, 6]`` float32: the highest logit that may be chosen, its id in the whole vocabulary,
        ``top1``, ``top2``, ``entropy``, ``lse``.
    """
    best = share.gather(1, stats.sample.clamp(min=0)[:, None])[:, 0]
    numbers = (best, stats.sample + first, stats.top1, stats.top2, stats.entropy, stats.lse)
    return torch.stack([x.to(torch.float32) for x in numbers], dim=1)


def merge_row_stats(parts: Tensor, active: Tensor | None = None, banned: int = -1) -> RowStats:
    """What ``row_stats`` gives for whole rows of logits, nothing being drawn.

    The chosen id is the same; ties go to the lowest. Probabilities, entropy and log-sum-exp are put
    together in float64 and rounded once.

    Args:
        parts: ``[shares, N, 6]`` float32, contiguous: :func:`share_numbers` of every share, in the order
            of their ids.
        active: ``[N]`` bool, or None for all; as each share was given it.
        banned: The id, in the whole vocabulary, that no share chose; -1 for none.

    Returns:
        The statistics. Special rows (NaN, nothing but ``-inf``, inactive) are those of ``row_stats``.

    Raises:
        RuntimeError: for a wrong shape, dtype, device or layout.
    """
    return RowStats(*torch.ops.vllm_diffusion.merge_row_stats(parts, active, banned))


@torch.library.register_fake("vllm_diffusion::merge_row_stats")  # type: ignore[untyped-decorator]
def _merge_row_stats_fake(parts: Tensor, active: Tensor | None, banned: int) -> tuple[Tensor, ...]:
    rows = parts.shape[1]
    numbers = [parts.new_empty(rows) for _ in range(5)]
    return (parts.new_empty(rows, dtype=torch.int64), *numbers)
