# SPDX-License-Identifier: Apache-2.0
"""What is accepted of a draft, which drafts are verified, and what a mask that verifies sees."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.reference.self_speculation import How, SelfSpeculation
from tests.sampling.launches import canvas
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.kernels.noise import draw_offset
from vllm.v1.diffusion.kernels.row_stats import row_stats
from vllm.v1.diffusion.layers import cache_attention
from vllm.v1.diffusion.layers.own_keys import Verified, own_key_attention
from vllm.v1.diffusion.policies import PositionStats, get_policy
from vllm.v1.diffusion.sampling.policy_selection import SpeculationRows
from vllm.v1.diffusion.sampling.step_logits import StepLogits
from vllm.v1.diffusion.worker.speculating.verification import Verification


@pytest.mark.parametrize("at_once", [1 << 28, 1])
def test_a_mask_sees_what_is_before_it_and_itself(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_attention, "_MOST_BYTES", at_once)
    torch.manual_seed(0)
    starts, width, heads, kv_heads, size, page = [0, 5, 22], 4, 6, 2, 8, 8
    query = torch.randn(3, width, heads, size)
    key, value = torch.randn(2, 3, width, kv_heads, size)
    key_cache, value_cache = torch.randn(2, 12, page, kv_heads, size)
    table = torch.randperm(12)[: 3 * 4].view(3, 4).to(torch.int32)
    verified = Verified(
        rows=torch.zeros(3, width, dtype=torch.int64),
        starts=torch.tensor(starts),
        used=torch.ones(3, dtype=torch.bool),
        longest=22 + width,
        block_table=table,
        page_size=page,
    )
    attended = own_key_attention(query, key, value, key_cache, value_cache, verified, scale=0.7)
    for n, start in enumerate(starts):
        keys, values = (cache[table[n].long()].flatten(0, 1) for cache in (key_cache, value_cache))
        for i in range(width):
            for head in range(heads):
                shared = head * kv_heads // heads
                seen = torch.cat((keys[: start + i, shared], key[n, i : i + 1, shared])).double()
                reported = torch.cat((values[: start + i, shared], value[n, i : i + 1, shared])).double()
                want = (seen @ query[n, i, head].double() * 0.7).softmax(0) @ reported
                torch.testing.assert_close(attended[n, i, head].double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_what_leaves_is_distributed_as_verification_says(temperature: float) -> None:
    """A draft's draw, its acceptance and its replacement are independent draws."""
    many, ids, mask = 20_000, 8, 7
    torch.manual_seed(1)
    draft, answer = torch.randn(2, ids)
    draft[mask] = answer[mask] = -torch.inf
    slots = torch.arange(many)
    seeds, position = torch.arange(many), torch.full((many,), 5)
    hot = torch.full((many,), temperature)
    offset = draw_offset(position, torch.zeros(many, dtype=torch.int64))
    drafts = draft.expand(many, ids).contiguous()
    drawn = row_stats(drafts, hot, hot, seeds, offset, None, mask)
    canvases = CanvasStates(many, 1, mask, torch.device("cpu"))
    states = SimpleNamespace(temperature=SimpleNamespace(gpu=hot))
    verification = Verification(canvases, states, ids, torch.float32, 64)
    verification.tokens[:, 0] = drawn.sample
    verification._drafts[:, 0] = draft
    policy = get_policy("self_speculation")
    _, view = canvas(policy, many, 1, torch.device("cpu"))
    vars(view).update(seed=seeds, position=position[:, None])
    position_stats: Any = view
    logits = StepLogits(answer.expand(many, ids).contiguous())
    rows = SpeculationRows(slots, slots[:, None], np.arange(many), position_stats, drawn, logits)
    step: Any = SimpleNamespace(row_slot=slots, row_column=torch.zeros(many, dtype=torch.int64))
    verified = torch.ones(many, dtype=torch.bool)
    ratio = verification._ratios(rows, step, ~verified)
    accepted, tokens = verification._accept(view, rows, ratio, verified)
    assert accepted.all()
    want = (answer / temperature).softmax(0) * many
    counts = torch.bincount(tokens[:, 0], minlength=ids)
    assert counts[mask] == 0
    # A chi-square of six degrees beyond 30 has a probability of 4e-5.
    assert float(((counts - want)[:mask].square() / want[:mask]).sum()) < 30
    # The draft's own distribution is another one.
    before = torch.bincount(drawn.sample, minlength=ids)
    assert float(((before - want)[:mask].square() / want[:mask]).sum()) > 1000


def test_which_drafts_are_verified() -> None:
    """As the reference, which works on one request in Python."""
    policy, width, ids = get_policy("self_speculation"), 6, 9
    reference: Any = SelfSpeculation.__new__(SelfSpeculation)
    ways: list[tuple[dict[str, float], How]] = []
    for cost in (0.0, 1.0, 2.0):
        how = How(width, 0.5, coefficient=cost, on=0.3, sharpness=1.7, confidence=0.6)
        ways.append(({"verify_cost": cost, "verify_score": 0.3, "acceptance_scale": 1.7}, how))
        how = How(width, 0.5, coefficient=cost, dynamic=True, estimator="margin", confidence=0.6)
        ways.append(({"confident_cost": cost, "acceptance_margin": 0.05}, how))
        how = How(width, 0.5, "score_hysteresis", coefficient=cost, on=1.2, off=0.4, confidence=0.6)
        ways.append(({"verify_cost": cost, "verify_score": 1.2, "release_score": 0.4}, how))
    torch.manual_seed(2)
    seen = []
    for values, how in ways:
        reference._on = False
        on = torch.zeros(1, dtype=torch.bool)
        for _ in range(60):
            p = (torch.randn(width, ids) * 3).softmax(-1).double()
            masked = torch.rand(width) < 0.6
            top = p.topk(2).values
            stats = PositionStats(
                p.argmax(-1)[None],
                top[None, :, 0],
                -(p * p.log()).sum(-1)[None],
                top[None, :, 0],
                top[None, :, 1],
            )
            _, view = canvas(policy, 1, width, torch.device("cpu"), threshold=0.6, **values)
            view.masked.copy_(masked[None])
            wants, on = policy.wants(stats, view, on, ids)
            span = [
                i
                for i in range(width)
                if masked[i] and all(masked[j] for j in range(int(masked.to(torch.int8).argmax()), i))
            ]
            want = bool(span) and reference._verifies(span, p, top[:, 0].tolist(), masked.tolist(), how)
            assert bool(wants) == want
            seen.append(want)
            if not span:
                reference._on = bool(on)
    assert 50 < sum(seen) < len(seen) - 50
