# SPDX-License-Identifier: Apache-2.0
"""The parts of DiffusionGemma's decoding, without a model; ids are compared in ``tests/engine``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from vllm.v1.diffusion.layers import cache_attention
from vllm.v1.diffusion.layers.canvas_window import Canvases, canvas_attention
from vllm.v1.diffusion.policies.noise import random_ids, uniform
from vllm.v1.diffusion.sampling.renoising import within_bound
from vllm.v1.diffusion.sampling.step_logits import StepLogits, soft_capped
from vllm.v1.diffusion.worker.renoising import CanvasSequences


def kept_by_hand(entropy: list[float], free: list[bool], bound: float) -> list[bool]:
    """One canvas, position after position, in Python's float64."""
    kept, total = [False] * len(entropy), 0.0
    for i in sorted((i for i, f in enumerate(free) if f), key=lambda i: entropy[i]):
        if total > bound:
            break
        kept[i], total = True, total + entropy[i]
    return kept


def test_positions_are_kept_by_rising_entropy() -> None:
    rng = np.random.default_rng(0)
    entropy = rng.exponential(0.3, (200, 12)).astype(np.float32)
    free = rng.random((200, 12)) < 0.8
    bound = rng.exponential(0.5, 200).astype(np.float32)
    kept = within_bound(torch.tensor(entropy), torch.tensor(free), torch.tensor(bound))
    wanted = [
        kept_by_hand(e.astype(float).tolist(), f.tolist(), float(b))
        for e, f, b in zip(entropy, free, bound, strict=True)
    ]
    assert kept.tolist() == wanted
    assert (kept.sum(dim=1) >= torch.tensor(free).any(dim=1).int()).all()


def test_the_bound_itself_is_within() -> None:
    entropy = torch.tensor([[0.25, 0.25, 0.25, 0.25]])
    everything = torch.ones(1, 4, dtype=torch.bool)
    counts = [
        int(within_bound(entropy, everything, torch.tensor([b])).sum()) for b in (0.0, 0.2, 0.25, 0.5, 0.75)
    ]
    assert counts == [1, 1, 2, 3, 4]


def test_random_ids_are_uniform_and_keyed() -> None:
    seed, step = torch.arange(50)[:, None], torch.zeros(50, 1, dtype=torch.int32)
    position = torch.arange(400).expand(50, -1)
    ids = random_ids(seed, position, step, 10)
    assert ids.min() == 0 and ids.max() == 9
    counts = torch.bincount(ids.flatten(), minlength=10)
    # 20,000 draws of 10 ids: a chi-square of nine degrees beyond 35 has a probability of 6e-5.
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 35
    assert torch.equal(ids[7:8, 100:], random_ids(seed[7:8], position[7:8, 100:], step[7:8], 10))
    for other in (random_ids(seed + 50, position, step, 10), random_ids(seed, position, step + 1, 10)):
        assert 0.05 < float((other == ids).float().mean()) < 0.15
    # Other draws of the same key are other numbers.
    assert float(((uniform(seed, position, step) * 10).long() == ids).float().mean()) < 0.15


def test_logits_are_capped_in_float32_and_stay_banned() -> None:
    raw = (torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * 40).to(torch.bfloat16)
    raw[2, 3] = -torch.inf
    kept = raw.clone()
    capped = soft_capped(raw, 30.0)
    wanted = 30.0 * torch.tanh(raw.double() / 30.0)
    wanted[2, 3] = -torch.inf
    assert capped.dtype == torch.float32 and torch.equal(raw, kept)
    torch.testing.assert_close(capped.double(), wanted, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(StepLogits(raw, cap=30.0).of(np.array([0, 2])), capped[[0, 2]])


def test_windows_are_known_tokens_and_a_canvas() -> None:
    """A prompt's chunk, a prompt with its first step, a later step, a commit with the next one's."""
    sequences = CanvasSequences.of(
        starts=np.array([0, 3, 20, 36]), lengths=np.array([6, 9, 4, 8]), canvases=np.array([0, 4, 4, 4])
    )
    assert sequences.request is not None and sequences.request.tolist() == [0, 1, 1, 2, 3, 3]
    assert sequences.query_start_loc.tolist() == [0, 6, 11, 15, 19, 23, 27]
    assert sequences.seq_lens.tolist() == [6, 8, 12, 24, 40, 44]
    assert sequences.causal.tolist() == [1, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("ends", [(9, 12, 30), (31, 40, 47)], ids=("shorter than the window", "longer"))
@pytest.mark.parametrize("most", [1, 1 << 28], ids=("in parts", "at once"))
def test_a_canvas_sees_the_window_before_it(
    ends: tuple[int, ...], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row sees the same keys: the last of the context and the whole canvas; in float64 by hand."""
    monkeypatch.setattr(cache_attention, "_MOST_BYTES", most)
    generator = torch.Generator().manual_seed(1)
    width, window, heads, kv_heads, size, page = 5, 16, 4, 2, 8, 4
    pages = 3 * 12
    key_cache, value_cache = (torch.randn(pages, page, kv_heads, size, generator=generator) for _ in range(2))
    table = torch.randperm(pages, generator=generator).view(3, 12).to(torch.int32)
    query = torch.randn(3, width, heads, size, generator=generator)
    canvases = Canvases(
        rows=torch.arange(3 * width).view(3, width),
        ends=torch.tensor(ends, dtype=torch.int32),
        shortest=min(ends),
        block_table=table,
    )
    attended = canvas_attention(query, key_cache, value_cache, canvases, window, scale=0.7)
    for i, end in enumerate(ends):
        key, value = (
            cache[table[i].long()].flatten(0, 1)[max(0, end - width - window + 1) : end].double()
            for cache in (key_cache, value_cache)
        )
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = query[i, :, head].double() @ key[:, shared].T * 0.7
            wanted = scores.softmax(-1) @ value[:, shared]
            torch.testing.assert_close(attended[i, :, head].double(), wanted, rtol=1e-5, atol=1e-5)


def test_the_schedule_begins_at_its_highest() -> None:
    """T = t_min + (t_max - t_min) n / N for n = N, N - 1, .. 1."""
    from vllm.v1.diffusion.sampling.renoising import Renoising

    steps, made = 4, torch.arange(6, dtype=torch.int32)
    slots = torch.arange(6)
    held: Any = Renoising.__new__(Renoising)
    filled = {"t_max": torch.full((6,), 0.8), "t_min": torch.full((6,), 0.4)}
    held._values = lambda step, name: filled[name]
    held._canvases = _Fields(steps=_Fields(gpu=torch.full((6,), steps)), step=made)
    schedule = Renoising.schedule(held, _Fields(slots=slots))  # type: ignore[arg-type]
    assert schedule.tolist() == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.5, 0.5])
    assert not math.isnan(float(schedule.sum()))


class _Fields:
    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)
