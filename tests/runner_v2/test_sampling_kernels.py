# SPDX-License-Identifier: Apache-2.0
"""Temperature, min-p and the Gumbel-max draw against definitions in NumPy."""

from typing import Any

import numpy as np
import pytest
import torch

from vllm.v1.worker.gpu.sample.gumbel import apply_temperature, gumbel_sample
from vllm.v1.worker.gpu.sample.min_p import apply_min_p

MASK = 0xFFFFFFFF
VOCABULARIES = [5, 1024, 1025, 5000]


def murmur3(words: Any, start: Any = 0) -> Any:
    """MurmurHash3_x86_32 of some words, in unbounded integers."""

    def rotate(x: Any, by: Any) -> Any:
        return (x << by | x >> (32 - by)) & MASK

    h = start
    for word in words:
        k = word * 0xCC9E2D51 & MASK
        k = rotate(k, 15) * 0x1B873593 & MASK
        h = (rotate(h ^ k, 13) * 5 + 0xE6546B64) & MASK
    h ^= 4 * len(words)
    h = (h ^ h >> 16) * 0x85EBCA6B & MASK
    h = (h ^ h >> 13) * 0xC2B2AE35 & MASK
    return h ^ h >> 16


def noise(seed: Any, pos: Any, token: Any, fp64: Any) -> Any:
    words = [seed & MASK, seed >> 32 & MASK, pos & MASK, token]
    low = murmur3(words)
    if not fp64:
        return -np.log(-np.log1p(-(low + 0.5) / 2**32))
    bits = (murmur3(words, 0x9E3779B9) << 32 | low) >> 11
    return -np.log(-np.log((bits + 0.5) / 2**53))


def test_the_hash_is_murmur3() -> None:
    """Values of the published reference implementation."""
    assert murmur3([0]) == 0x2362F9DE
    assert murmur3([int.from_bytes(b"test", "little")]) == 0xBA6BD213


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fp64", [False, True])
@pytest.mark.parametrize("drafting", [False, True])
def test_gumbel(vocabulary: Any, dtype: Any, fp64: bool, drafting: bool) -> None:
    rng = np.random.default_rng(vocabulary)
    logits = torch.tensor(rng.normal(0, 4, (4, vocabulary)), dtype=dtype)
    logits[1, ::2] = -torch.inf
    temperature = torch.tensor([1.0, 0.5, 0.0, 2.0])
    seeds = torch.tensor(rng.integers(-(2**63), 2**63 - 1, 4))
    slots = torch.tensor([3, 1, 2, -1])
    pos = torch.tensor([0, 17, 5, 9])
    got = gumbel_sample(logits, slots, temperature, seeds, pos, True, drafting, use_fp64=fp64)
    for row, slot in enumerate(slots.tolist()):
        exact = logits[row].double().numpy()
        if slot < 0 or temperature[slot] == 0:
            assert got[row] == exact.argmax()
            continue
        at = pos[row].item() + (2**30 if drafting else 0)
        drawn = [noise(seeds[slot].item(), at, v, fp64) for v in range(vocabulary)]
        scores = exact / temperature[slot].item() + drawn
        assert scores[got[row]] >= scores.max() - 1e-4


def test_gumbel_leaves_the_temperature_to_the_caller() -> None:
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    slots, pos = torch.zeros(64, dtype=torch.int64), torch.arange(64)
    seed, one = torch.tensor([5]), torch.ones(1)
    half = torch.full((1,), 0.5)
    scaled = gumbel_sample(logits / 0.5, slots, half, seed, pos, False, False)
    assert scaled.equal(gumbel_sample(logits / 0.5, slots, one, seed, pos, True, False))


def test_gumbel_follows_the_distribution() -> None:
    """Chi-square against softmax over 40000 draws; the bound is far in the tail (p < 1e-6)."""
    p = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
    n = 40000
    logits = p.log().expand(n, 5).contiguous()
    for fp64 in (False, True):
        got = gumbel_sample(
            logits,
            torch.zeros(n, dtype=torch.int64),
            torch.ones(1),
            torch.tensor([1234]),
            torch.arange(n),
            True,
            False,
            use_fp64=fp64,
        )
        seen = torch.bincount(got, minlength=5)
        assert ((seen - n * p) ** 2 / (n * p)).sum() < 34


def test_gumbel_does_not_depend_on_threads() -> None:
    logits = torch.randn(3, 40000, generator=torch.Generator().manual_seed(1))
    args = (torch.zeros(3, dtype=torch.int64), torch.ones(1), torch.tensor([9]), torch.arange(3))
    together = gumbel_sample(logits, *args, True, False)
    for row in range(3):
        alone = gumbel_sample(
            logits[row : row + 1], args[0][:1], *args[1:3], args[3][row : row + 1], True, False
        )
        assert alone[0] == together[row]


def test_gumbel_of_a_row_without_a_choice() -> None:
    logits = torch.full((2, 3000), -torch.inf)
    logits[1] = torch.nan
    got = gumbel_sample(
        logits,
        torch.zeros(2, dtype=torch.int64),
        torch.ones(1),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
        True,
        False,
    )
    assert ((got >= 0) & (got < 3000)).all()


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_temperature(vocabulary: Any) -> None:
    logits = torch.randn(5, vocabulary + 3, generator=torch.Generator().manual_seed(0))[:, :-3]
    temperature = torch.tensor([0.0, 1.0, 0.7, 3.0])
    slots = torch.tensor([2, 0, 1, 3, 2])
    want = logits.clone()
    for row, slot in enumerate(slots):
        if temperature[slot] != 0:
            want[row] = want[row] / temperature[slot]
    apply_temperature(logits, slots, temperature)
    assert logits.equal(want)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_min_p(vocabulary: Any) -> None:
    logits = 3 * torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(0))
    min_p = torch.tensor([0.0, 0.05, 1.0])
    slots = torch.tensor([2, 0, 1, 1])
    given = logits.clone()
    apply_min_p(logits, slots, min_p)
    for row, slot in enumerate(slots):
        p = given[row].double().softmax(-1)
        least = min_p[slot].double() * p.max()
        kept = logits[row] > -torch.inf
        assert logits[row][kept].equal(given[row][kept])
        assert kept[p >= least * (1 + 1e-5)].all()
        assert not kept[p < least * (1 - 1e-5)].any()


def test_a_slot_out_of_range_is_refused() -> None:
    with pytest.raises(RuntimeError, match="slot is out of range"):
        apply_temperature(torch.zeros(1, 4), torch.tensor([2]), torch.ones(2))
