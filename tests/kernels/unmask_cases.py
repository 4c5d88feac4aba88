# SPDX-License-Identifier: Apache-2.0
"""Inputs for the unmask tests, and what the rules mean in plain Python."""

import math
import random
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels.rules import Rule

MASK = 999


@dataclass
class State:
    """The arguments of unmask, in its order."""

    token: Tensor
    confidence: Tensor
    entropy: Tensor
    picked: Tensor | None
    row_start: Tensor
    slots: Tensor
    canvas: Tensor
    masked: Tensor
    unmasked_at: Tensor
    step: Tensor
    rule: Tensor
    steps: Tensor
    block_length: Tensor
    threshold: Tensor

    def arguments(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def to(self, device: torch.device) -> "State":
        moved: dict[str, Any] = {k: None if v is None else v.to(device) for k, v in self.arguments().items()}
        return State(**moved)

    def clone(self) -> "State":
        copied: dict[str, Any] = {k: None if v is None else v.clone() for k, v in self.arguments().items()}
        return State(**copied)


def one_request(
    rule: Rule,
    confidence: list[float],
    *,
    entropy: list[float] | None = None,
    masked: list[bool] | None = None,
    picked: list[bool] | None = None,
    steps: int = 4,
    step: int = 0,
    block_length: int | None = None,
    threshold: float = 0.0,
) -> State:
    """A single request in slot 1 of 3, in a canvas two positions wider than it needs."""
    n = len(confidence)
    width = n + 2
    is_masked = torch.ones(3, width, dtype=torch.bool)
    is_masked[1, :n] = torch.tensor(masked if masked is not None else [True] * n)
    return State(
        token=torch.arange(100, 100 + n),
        confidence=torch.tensor(confidence, dtype=torch.float32),
        entropy=torch.tensor(entropy or [0.0] * n, dtype=torch.float32),
        picked=None if picked is None else torch.tensor(picked),
        row_start=torch.tensor([0, n], dtype=torch.int32),
        slots=torch.tensor([1]),
        canvas=torch.full((3, width), MASK),
        masked=is_masked,
        unmasked_at=torch.full((3, width), -1, dtype=torch.int32),
        step=torch.full((3,), step, dtype=torch.int32),
        rule=torch.full((3,), int(rule), dtype=torch.int32),
        steps=torch.full((3,), steps, dtype=torch.int32),
        block_length=torch.full((3,), block_length or n, dtype=torch.int32),
        threshold=torch.full((3,), threshold, dtype=torch.float32),
    )


def random_state(
    seed: int, rules: list[int] | None = None, width: int | None = None, requests: int | None = None
) -> State:
    """A mixed call: requests of any length, partly unmasked, with ties, NaN and infinities."""
    rng = random.Random(seed)
    width = width or rng.choice([1, 4, 8, 32, 33, 100])
    requests = requests or rng.randint(1, 9)
    slots = rng.sample(range(requests + 3), requests)
    lengths = [rng.choice([width, rng.randint(0, width)]) for _ in range(requests)]
    rows = sum(lengths)
    levels = rng.choice([3, 1000])  # few levels: many ties

    def number(specials: list[float]) -> float:
        return rng.choice(specials) if rng.random() < 0.05 else rng.randint(0, levels) / levels

    every = len(slots) + 3
    return State(
        token=torch.tensor([rng.randrange(MASK) for _ in range(rows)], dtype=torch.int64),
        confidence=torch.tensor([number([math.nan, 0.0, 1.0, -math.inf]) for _ in range(rows)]),
        entropy=torch.tensor([number([math.nan, 0.0, math.inf]) * 3 for _ in range(rows)]),
        picked=torch.tensor([rng.random() < 0.4 for _ in range(rows)], dtype=torch.bool),
        row_start=torch.tensor([sum(lengths[:i]) for i in range(requests + 1)], dtype=torch.int32),
        slots=torch.tensor(slots),
        canvas=torch.full((every, width), MASK),
        masked=torch.rand(every, width, generator=torch.Generator().manual_seed(seed))
        < rng.choice([0.0, 0.3, 0.9, 1.0]),
        unmasked_at=torch.full((every, width), -1, dtype=torch.int32),
        step=torch.tensor([rng.randint(0, 12) for _ in range(every)], dtype=torch.int32),
        rule=torch.tensor([rng.choice(rules or range(7)) for _ in range(every)], dtype=torch.int32),
        steps=torch.tensor([rng.randint(1, 40) for _ in range(every)], dtype=torch.int32),
        block_length=torch.tensor([rng.randint(1, width) for _ in range(every)], dtype=torch.int32),
        threshold=torch.tensor([rng.choice([0.0, 0.3, 1 / 3, 0.6, 1.0, 2.0]) for _ in range(every)]),
    )


def oracle(state: State) -> list[int]:
    """Applies the rules to `state` in place, one Python object at a time; returns `remaining`."""
    remaining = []
    starts = state.row_start.tolist()
    for r, slot in enumerate(state.slots.tolist()):
        rows = range(starts[r], starts[r + 1])
        open_rows = [i for i in rows if state.masked[slot, i - starts[r]]]
        if not open_rows:
            remaining.append(0)
            continue
        chosen = choose(state, slot, open_rows)
        for i in chosen:
            p = i - starts[r]
            state.canvas[slot, p] = state.token[i]
            state.masked[slot, p] = False
            state.unmasked_at[slot, p] = state.step[slot]
        state.step[slot] += 1
        remaining.append(len(open_rows) - len(chosen))
    return remaining


def choose(state: State, slot: int, open_rows: list[int]) -> list[int]:
    rule = int(state.rule[slot])
    block, total, step = (int(x[slot]) for x in (state.block_length, state.steps, state.step))
    threshold = float(state.threshold[slot])
    quota = block // total
    if step < block % total:
        quota += 1
    quota = min(max(quota, 1), len(open_rows))
    if rule == 0:
        assert state.picked is not None
        return [i for i in open_rows if state.picked[i]]
    if rule == 3:
        return open_rows[:quota]

    def confidence(i: int) -> float:
        value = float(state.confidence[i])
        return -math.inf if math.isnan(value) else value

    def entropy(i: int) -> float:
        value = float(state.entropy[i])
        return math.inf if math.isnan(value) else value

    best = sorted(open_rows, key=lambda i: (-confidence(i), i))
    if rule == 1:
        return best[:quota]
    if rule == 2:
        above = [i for i in open_rows if confidence(i) > threshold]
        return above if len(above) >= quota else best[:quota]
    if rule == 4:
        chosen: list[int] = []
        spent = 0.0
        for i in sorted(open_rows, key=lambda i: (entropy(i), i)):
            spent += entropy(i)
            if chosen and not spent < threshold:
                break
            chosen.append(i)
        return chosen
    if rule == 5:
        return [i for i in open_rows if i == best[0] or confidence(i) >= threshold]
    assert rule == 6
    taken = 1
    while taken < len(best):
        bar = torch.tensor(1 - threshold / (taken + 2)).item()
        if confidence(best[taken]) < bar:
            break
        taken += 1
    return best if taken == len(best) - 1 else best[:taken]
