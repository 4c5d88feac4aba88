# SPDX-License-Identifier: Apache-2.0
"""Shares of the vocabulary, put together, against the float64 reference of whole rows."""

from __future__ import annotations

import math

import pytest
import torch

from tests.kernels.kernel_cases import assert_stats, make_logits, row_arguments
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels.merge_row_stats import merge_row_stats, share_numbers
from vllm.v1.diffusion.kernels.row_stats import RowStats, row_stats

INF = math.inf


def merged(
    logits: torch.Tensor, bounds: list[int], active: torch.Tensor | None = None, banned: int = -1
) -> RowStats:
    """Statistics of rows whose ids are cut at ``bounds``."""
    parts = []
    for first, end in zip([0, *bounds], [*bounds, logits.shape[1]], strict=True):
        share = logits[:, first:end]
        own = banned - first if first <= banned < end else -1
        stats = row_stats(share, **row_arguments(share), active=active, banned=own)
        parts.append(share_numbers(share, stats, first))
    return merge_row_stats(torch.stack(parts), active, banned)


def check(
    logits: torch.Tensor, bounds: list[int], active: torch.Tensor | None = None, banned: int = -1
) -> RowStats:
    stats = merged(logits, bounds, active, banned)
    wanted = reference.row_stats(logits, **row_arguments(logits), active=active, banned=banned)
    assert_stats(stats, wanted, str(bounds), "merge_row_stats")
    whole = row_stats(logits, **row_arguments(logits), active=active, banned=banned)
    assert torch.equal(stats.sample, whole.sample)
    return stats


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("banned", [-1, 0, 700])
@pytest.mark.parametrize("bounds", [[], [512], [2, 4], [256, 512, 768], [900, 1001]])
def test_shares(device: torch.device, dtype: torch.dtype, banned: int, bounds: list[int]) -> None:
    """Of equal, of very different sizes; in bfloat16 many ids have the same logit."""
    logits = make_logits(40, 1003, dtype, scale=3.0).to(device)
    check(logits, bounds, banned=banned)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0, 1000.0])
def test_flat_to_peaked(device: torch.device, scale: float) -> None:
    logits = make_logits(12, 20001, scale=scale).to(device)
    stats = check(logits, [5000, 10000, 15000])
    if scale == 0.0:
        assert stats.sample.tolist() == [0] * 12
        torch.testing.assert_close(stats.entropy, torch.full_like(stats.entropy, math.log(20001)))


def test_a_tie_over_shares_goes_to_the_lowest_id(device: torch.device) -> None:
    logits = make_logits(3, 64).to(device)
    logits[:, [5, 20, 40]] = 50.0
    logits[1, 5] = 49.0
    stats = check(logits, [16, 32])
    assert stats.sample.tolist() == [5, 20, 5]
    assert torch.equal(stats.top1, stats.top2)


def test_odd_rows(device: torch.device) -> None:
    """NaN, infinity, nothing but -inf in a share or in all, a mask that has all the weight."""
    logits = make_logits(8, 96).to(device)
    logits[0, 70] = math.nan
    logits[1, 3] = INF
    logits[2] = -INF
    logits[3, :32] = -INF
    logits[4, 32:] = -INF
    logits[5, 40] = 1000.0
    logits[6] = -INF
    logits[6, 40] = 1.0
    for banned in (-1, 0, 40):
        check(logits, [32, 64], banned=banned)


def test_inactive_rows(device: torch.device) -> None:
    logits = make_logits(6, 300).to(device)
    logits[1] = math.nan
    active = torch.tensor([True, False] * 3, device=device)
    stats = check(logits, [100, 200], active)
    assert stats.sample[1::2].tolist() == [-1] * 3
    assert stats.lse[1::2].tolist() == [0.0] * 3


def test_no_rows(device: torch.device) -> None:
    assert merge_row_stats(torch.zeros(2, 0, 6, device=device)).sample.shape == (0,)


@pytest.mark.parametrize(
    ("parts", "active", "banned", "message"),
    [
        (torch.zeros(2, 3, 5), None, -1, "parts must have the dimensions"),
        (torch.zeros(2, 3, 6, dtype=torch.float64), None, -1, "parts must be float32"),
        (torch.zeros(3, 2, 6).transpose(0, 1), None, -1, "parts must be contiguous"),
        (torch.zeros(2, 3, 6), torch.zeros(2, dtype=torch.bool), -1, "active must have 3 entries"),
        (torch.zeros(2, 3, 6), None, -2, "banned must be -1 or an id"),
    ],
)
def test_bad_arguments_are_refused(
    parts: torch.Tensor, active: torch.Tensor | None, banned: int, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        merge_row_stats(parts, active, banned)
