# SPDX-License-Identifier: Apache-2.0
"""The Gumbel draw of row_stats: its bits, its distribution, and what it may not depend on."""

import math
from typing import Any

import pytest
import torch

from tests.kernels.kernel_cases import check_row_stats, make_logits, row_arguments
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels.row_stats import row_stats


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python integers, after the paper."""
    mask = 0xFFFFFFFF
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & mask, (a >> 32) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    """The known-answer vectors published with Random123."""
    words = [[int(x, 16) for x in text.split()] for text in (counter, key, expected)]
    assert philox(words[0], words[1]) == words[2]


def test_reference_words() -> None:
    seed, offset, mask = -81985529216486896, 2**62 + 12345, 0xFFFFFFFF
    words = reference.philox_words(torch.tensor([0, seed]), torch.tensor([0, offset]), 4099)
    assert words[0, :4].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    key, low, high = [seed & mask, seed >> 32 & mask], offset & mask, offset >> 32 & mask
    for v in (0, 5, 4096, 4098):
        assert words[1, v].item() == philox([low, high, v // 4, 0], key)[v % 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("vocab", "scale"), [(64, 0.0), (513, 1.0), (50257, 0.0), (50257, 3.0)])
def test_draws_are_the_reference_s(
    device: torch.device, dtype: torch.dtype, vocab: int, scale: float
) -> None:
    """With flat logits a wrong bit anywhere shows; many draws."""
    logits = make_logits(200 if vocab < 1000 else 6, vocab, dtype, scale=scale).to(device)
    for seed in range(2):
        stats = check_row_stats(logits, row_arguments(logits, [0.5, 1.0, 2.0], seed=seed))
    assert len(set(stats.sample.tolist())) > 3


def test_rising_logits(device: torch.device) -> None:
    """Each id better than the last: the order in which candidates are seen must not matter."""
    logits = torch.linspace(0, 30, 30000)[None].repeat(4, 1)
    logits[1] = logits[1].flip(0)
    check_row_stats(logits.to(device), row_arguments(logits.to(device), 1.0))


def test_groups_that_tie_but_for_rounding(device: torch.device) -> None:
    """Two groups whose scores differ by 1e-7, less than float32's sums can tell: float64 decides."""
    rows, group = 64, reference.GROUP_IDS
    logits = make_logits(rows, 2 * group)
    arguments = row_arguments(logits, 1.0)
    noise = reference.gumbel_noise(arguments["seed"], arguments["offset"], 2, stream=1)
    masses = logits.double().view(rows, 2, group).logsumexp(-1) + noise
    lead = (masses[:, 0] - masses[:, 1])[:, None].repeat(1, group)
    logits[:, group:] += lead.float()
    scores = logits.double().view(rows, 2, group).logsumexp(-1) + noise
    assert ((scores[:, 0] - scores[:, 1]).abs() < 2e-6).all()
    moved = {name: value.to(device) for name, value in arguments.items()}
    stats = check_row_stats(logits.to(device), moved)
    assert 5 < int((stats.sample < group).sum()) < rows - 5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("vocab", [40, 7000])
def test_distribution(device: torch.device, temperature: float, vocab: int) -> None:
    """Chi-square of draws against the softmax, at the 1e-6 level (fixed seed)."""
    draws = 40000 if vocab == 40 else 8000
    row = make_logits(1, vocab, scale=1.5)[0]
    row[7] = -math.inf
    row[40::97] += 6.0  # several likely ids in each group
    logits = row.repeat(draws, 1).to(device)
    offset = torch.arange(draws, device=device)
    ones = torch.ones(draws, device=device)
    seed = torch.full_like(offset, 1234)
    sample = row_stats(logits, ones * temperature, ones, seed, offset).sample.cpu()
    expected = (row / temperature).double().softmax(-1) * draws
    counts = torch.bincount(sample, minlength=vocab).double()
    assert counts[7] == 0
    large = expected >= 5
    least: Any = max(expected[~large].sum(), 1.0)
    rest = (counts[~large].sum() - expected[~large].sum()) ** 2 / least
    chi2 = float(((counts - expected) ** 2 / expected)[large].sum() + rest)
    freedom = int(large.sum())
    # Wilson-Hilferty; 4.75 standard deviations are 1e-6.
    bound = freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3
    assert chi2 < bound


def test_seeds_give_independent_draws(device: torch.device) -> None:
    """Neighbouring seeds and offsets agree no more often than chance: 1/V on flat logits."""
    vocab, draws = 16, 20000
    logits = torch.zeros(draws, vocab, device=device)
    ones, ids = torch.ones(draws, device=device), torch.arange(draws, device=device)
    zeros = torch.zeros_like(ids)
    by_seed = row_stats(logits, ones, ones, ids, zeros).sample
    by_offset = row_stats(logits, ones, ones, zeros, ids).sample
    deviation = 5 * math.sqrt(draws / vocab * (1 - 1 / vocab))
    for a, b in [(by_seed[1:], by_seed[:-1]), (by_offset[1:], by_offset[:-1]), (by_seed, by_offset)]:
        assert abs((a == b).sum().item() - len(a) / vocab) < deviation


@pytest.mark.parametrize("vocab", [64, 20000])
def test_a_row_does_not_depend_on_its_batch(device: torch.device, vocab: int) -> None:
    """Alone (spread by slices), among many (spread by rows), in another order: the same bits."""
    logits = make_logits(70, vocab, torch.bfloat16, scale=2.0).to(device)
    arguments = row_arguments(logits, [1.0, 0.0, 0.7], [1.0, 0.7])
    batch = row_stats(logits, **arguments, banned=3)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0)).to(device)
    shuffled = row_stats(logits[order], **{k: v[order] for k, v in arguments.items()}, banned=3)
    for name in batch._fields:
        assert torch.equal(getattr(batch, name)[order], getattr(shuffled, name)), name
    for i in range(0, 70, 7):
        own = {k: v[i : i + 1] for k, v in arguments.items()}
        alone = row_stats(logits[i : i + 1], **own, banned=3)
        for name in batch._fields:
            assert torch.equal(getattr(batch, name)[i : i + 1], getattr(alone, name)), name
