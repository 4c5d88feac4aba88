# SPDX-License-Identifier: Apache-2.0
"""Penalties, biases and bans, against loops over tokens."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.runner_v2.batches import int32
from vllm.v1.worker.gpu import structured_outputs
from vllm.v1.worker.gpu.sample.bad_words import apply_bad_words
from vllm.v1.worker.gpu.sample.logit_bias import apply_logit_bias
from vllm.v1.worker.gpu.sample.penalties import apply_penalties, bincount

SEEDS = range(12)
INF = torch.inf


@pytest.mark.parametrize("seed", SEEDS)
def test_bincount(seed: Any) -> None:
    rng = np.random.default_rng(seed)
    table = int32(rng.integers(0, 100, (6, 40)))
    prefill = rng.integers(1, 41, 6)
    prompt = rng.integers(1, prefill + 1)
    mask = int32(rng.integers(0, 9, (6, 4)))
    bins = int32(rng.integers(0, 9, (6, 100)))
    want_mask, want_bins = mask.clone(), bins.clone()
    slots = [4, 1]
    for slot in slots:
        words = [0] * 4
        want_bins[slot] = 0
        for t in range(prefill[slot]):
            token = int(table[slot, t])
            if t < prompt[slot]:
                words[token // 32] |= 1 << token % 32
            else:
                want_bins[slot, token] += 1
        want_mask[slot] = torch.tensor(np.array(words, dtype=np.uint32).view(np.int32))
    bincount(torch.tensor(slots), table, int32(prompt), int32(prefill), mask, bins, 40)
    assert mask.equal(want_mask)
    assert bins.equal(want_bins)


@pytest.mark.parametrize("seed", SEEDS)
def test_penalties(seed: Any) -> None:
    rng = np.random.default_rng(seed)
    vocabulary = 70
    logits = torch.tensor(rng.normal(0, 3, (7, vocabulary)), dtype=torch.float32)
    slots, local = [2, 2, 2, 0, 1, 3, 3], [0, 1, 2, 0, 0, 0, 1]
    ids = int32(rng.integers(0, vocabulary, 7))
    repetition, frequency, presence = (
        torch.tensor(values, dtype=torch.float32)
        for values in ([1.0, 1.0, 1.7, 0.8], [0.0, 0.0, 0.3, -0.2], [0.0, 0.6, 0.1, 0.0])
    )
    in_prompt = rng.random((4, 96)) < 0.3
    mask = torch.tensor(np.packbits(in_prompt, axis=1, bitorder="little").view(np.int32))
    bins = int32(rng.integers(0, 3, (4, vocabulary)))
    want = logits.double().clone()
    for row, slot in enumerate(slots):
        counts = bins[slot].clone()
        for k in range(row - local[row] + 1, row + 1):
            counts[ids[k]] += 1
        for v in range(vocabulary):
            if in_prompt[slot, v] or counts[v] > 0:
                factor = repetition[slot].double()
                want[row, v] *= 1 / factor if want[row, v] > 0 else factor
            want[row, v] -= frequency[slot] * counts[v]
            want[row, v] -= presence[slot] * (counts[v] > 0)
    apply_penalties(
        logits, torch.tensor(slots), ids, int32(local), repetition, frequency, presence, mask, bins
    )
    torch.testing.assert_close(logits.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("restore", [True, False])
def test_bias(seed: Any, restore: bool) -> None:
    rng = np.random.default_rng(seed)
    vocabulary, most = 60, 8
    logits = torch.tensor(rng.normal(0, 3, (6, vocabulary)), dtype=torch.float32)
    logits[3, 5:] = -INF
    slots = torch.tensor(rng.integers(0, 5, 6))
    counts = [int32(rng.integers(0, most + 1, 5)) for _ in range(3)]
    counts[0][:2] = 0
    ids = [
        int32(np.stack([rng.permutation(5 + 11 * k)[:5].tolist() + [0] * 3 for _ in range(5)]))
        for k in range(3)
    ]
    for count in counts:
        count.clamp_(max=5)
    bias = torch.tensor(rng.normal(0, 5, (5, most)), dtype=torch.float32)
    pos, min_lens = torch.tensor(rng.integers(0, 9, 6)), int32(rng.integers(0, 9, 5))
    restoring = int32(rng.integers(0, 2, 5))
    want = logits.clone()
    for row, slot in enumerate(slots.tolist()):
        allowed, biased, stop = (ids[k][slot, : counts[k][slot]].tolist() for k in range(3))
        if allowed:
            for v in set(range(vocabulary)) - set(allowed):
                want[row, v] = -INF
        for k, v in enumerate(biased):
            want[row, v] += bias[slot, k]
        if stop and pos[row] + 1 < min_lens[slot]:
            before = want[row].clone()
            want[row, stop] = -INF
            if restore and restoring[slot] and (want[row] == -INF).all():
                want[row] = before
    apply_logit_bias(
        logits,
        slots,
        pos,
        counts[0],
        ids[0],
        counts[1],
        ids[1],
        bias,
        min_lens,
        counts[2],
        restoring,
        ids[2],
        restore,
    )
    assert logits.equal(want)


def test_stop_tokens_stay_if_nothing_else_is_left() -> None:
    logits = torch.tensor([[1.0, -INF, 2.0, -INF]])
    none, one = int32([0]), int32([2])
    empty = torch.zeros(1, 2, dtype=torch.int32)
    apply_logit_bias(
        logits, torch.tensor([0]), torch.tensor([0]), none, empty, none, empty, torch.zeros(1, 2),
        int32([9]), one, int32([1]), int32([[0, 2]]), True,
    )  # fmt: skip
    assert logits.tolist() == [[1.0, -INF, 2.0, -INF]]


@pytest.mark.parametrize("seed", SEEDS)
def test_bad_words(seed: Any) -> None:
    rng = np.random.default_rng(seed)
    vocabulary, width = 4, 30  # few tokens: matches are common
    words = [[rng.integers(0, vocabulary, rng.integers(1, 4)).tolist() for _ in range(3)] for _ in range(3)]
    words[1] = []
    flat = torch.zeros(3, 16, dtype=torch.int32)
    offsets = torch.zeros(3, 6, dtype=torch.int32)
    for slot, own in enumerate(words):
        joined = [token for word in own for token in word]
        flat[slot, : len(joined)] = int32(joined)
        offsets[slot, 1 : len(own) + 1] = int32(np.cumsum([len(w) for w in own]))
    table = int32(rng.integers(0, vocabulary, (3, width)))
    prompt, total = int32([4, 4, 9]), int32([12, 9, 9])
    slots, local = [0, 0, 0, 1, 2, 2], [0, 1, 2, 0, 0, 1]
    ids = int32(rng.integers(0, vocabulary, 6))
    logits = torch.zeros(6, vocabulary)
    want = logits.clone()
    for row, slot in enumerate(slots):
        made = table[slot, prompt[slot] : total[slot]].tolist()
        made += ids[row - local[row] + 1 : row + 1].tolist()
        for word in words[slot]:
            before = word[:-1]
            if not before or made[-len(before) :] == before:
                want[row, word[-1]] = -INF
    apply_bad_words(
        logits, torch.tensor(slots), flat, offsets, int32([len(w) for w in words]), table, prompt,
        total, ids, int32(local), 3,
    )  # fmt: skip
    assert logits.equal(want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [31, 64, 100])
def test_grammar(dtype: Any, vocabulary: int) -> None:
    rng = np.random.default_rng(vocabulary)
    words = -(-vocabulary // 32)
    allowed = rng.random((4, words * 32)) < 0.4
    allowed[1] = True
    bitmask = torch.tensor(np.packbits(allowed, axis=1, bitorder="little").view(np.int32))
    logits = torch.randn(6, vocabulary).to(dtype)
    want = logits.clone()
    starts = [0, 1, 3, 6]
    stride, places = 4, [(0, 0), (2, 0), (2, 2), (1, 3)]  # the last was not computed
    for mask, (request, place) in enumerate(places):
        row = starts[request] + place
        if row < starts[request + 1]:
            want[row, ~torch.tensor(allowed[mask, :vocabulary])] = -INF
    structured_outputs._apply_grammar_bitmask_kernel[(4, 1)](
        logits,
        logits.stride(0),
        int32([request * stride + place for request, place in places]),
        int32(starts),
        bitmask,
        bitmask.stride(0),
        vocabulary,
        MASK_STRIDE=stride,
        BLOCK_SIZE=8192,
    )
    assert logits.equal(want)
