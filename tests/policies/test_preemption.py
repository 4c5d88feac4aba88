# SPDX-License-Identifier: Apache-2.0
"""Every request ends, however short the KV cache and the budget of a step are; without an engine."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.policies.scheduling import Engine
from vllm.v1.outputs import ModelRunnerOutput


def alone(family: str, num_blocks: int, prompt: int, max_tokens: int, diffusion: Any, **options: Any) -> int:
    """Steps of a request that has the engine for itself."""
    engine = Engine(family, num_blocks, **options)
    engine.add("a", prompt, max_tokens, 0.0, **diffusion)
    return engine.run(1000)


TWO_CANVASES: dict[str, Any] = {"max_model_len": 64, "max_num_batched_tokens": 64, "max_num_seqs": 4}


def test_two_canvases_in_a_cache_for_one() -> None:
    """The second waits until the first has ended: none of their steps is lost."""
    how: dict[str, Any] = {"algorithm": "low_confidence_static", "steps": 16}
    each = alone("llada", 4, 12, 40, how, **TWO_CANVASES)
    engine = Engine("llada", 4, **TWO_CANVASES)
    for i, name in enumerate("ab"):
        engine.add(name, 12, 40, float(i), **how)
    assert engine.run(3 * each) <= 2 * each + 2
    assert engine.preempted == []


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_canvases_of_many_lengths(cache: str, count: int) -> None:
    """In the time that they take one after another, and a step for each."""
    how: dict[str, Any] = {"algorithm": "low_confidence_static", "steps": 3, "cache": cache}
    options: dict[str, Any] = {"max_model_len": 128, "max_num_batched_tokens": 128, "block_length": 8}
    sizes = [(5 + 9 * i, 20 + 17 * (i % 3)) for i in range(count)]
    total = sum(alone("llada", 6, *size, how, **options) for size in sizes)
    engine = Engine("llada", 6, **options)
    for i, size in enumerate(sizes):
        engine.add(str(i), *size, arrival=0.0, **how)
    assert engine.run(2 * total) <= total + count
    assert engine.preempted == []


@pytest.mark.parametrize("arrivals", ["in turn", "together"])
@pytest.mark.parametrize("budget", [8, 16, 64])
@pytest.mark.parametrize(
    "sizes", [((12, 100), (12, 100)), ((40, 60), (9, 90), (3, 60)), ((90, 30), (5, 110))]
)
def test_blocks(budget: int, arrivals: str, sizes: tuple[tuple[int, int], ...]) -> None:
    """The oldest is never preempted and advances at least every second step, so each becomes the oldest."""
    how: dict[str, Any] = {"algorithm": "low_confidence_static", "steps": 4}
    options: dict[str, Any] = {"max_model_len": 128, "max_num_batched_tokens": budget, "max_num_seqs": 4}
    options["enable_prefix_caching"] = False
    total = sum(alone("sdar", 6, *size, how, **options) for size in sizes)
    engine = Engine("sdar", 6, **options)
    for i, size in enumerate(sizes):
        engine.add(str(i), *size, arrival=float(i) if arrivals == "in turn" else 0.0, **how)
    while before := list(engine.scheduler.requests):
        assert engine.steps < 2 * total + 10, engine.preempted
        gone = len(engine.preempted)
        engine.step()
        assert before[0] not in engine.preempted[gone:], "the oldest is preempted"


def test_turns_are_fair_where_a_step_has_room_for_one() -> None:
    """Requests with room for their keys and values advance in turn, whatever their age."""
    how: dict[str, Any] = {"algorithm": "low_confidence_static", "steps": 4}
    engine = Engine("llada", 64, block_length=8, **TWO_CANVASES)
    requests = [engine.add(name, 4, 40, float(i), **how) for i, name in enumerate("abc")]
    for _ in range(50):
        engine.step()
        written = [request.num_output_tokens for request in requests]
        assert max(written) - min(written) <= 8, written
    assert min(written) >= 24, written


class Adaptive(Engine):
    """The same with a worker that decides how many of the open tokens are finished."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rng = random.Random(3)

    def step(self) -> dict[str, int]:
        scheduler = self.scheduler
        output = scheduler.schedule()
        self.steps += 1
        self.preempted += output.preempted_req_ids or ()
        emitted = dict.fromkeys(output.num_scheduled_tokens, 0)
        for name in output.scheduled_spec_decode_tokens:
            grid, known = scheduler._plans[name].grid, scheduler.requests[name].num_tokens
            ends = range(known, grid.reach(known) + 1)
            emitted[name] = (
                self.rng.choice([e for e in ends if grid.slides or grid.starts_block(e) or e == known])
                - known
            )
        names = list(emitted)
        index = {name: i for i, name in enumerate(names)}
        sampled = [[7] * emitted[name] for name in names]
        scheduler.update_from_output(output, ModelRunnerOutput(names, index, sampled_token_ids=sampled))
        return emitted


@pytest.mark.parametrize(
    ("family", "how", "options"),
    [
        ("wedlm", {}, {"block_length": 16}),
        (
            "sdar",
            {"algorithm": "multi_block"},
            {"generation_loop": "multi_block_diffusion", "block_length": 8},
        ),
        ("sdar", {}, {"generation_loop": "multi_block_diffusion", "block_length": 8}),
    ],
    ids=str,
)
@pytest.mark.parametrize("cached", [False, True])
def test_open_tokens_that_a_preemption_would_change(
    family: str, how: dict[str, Any], options: dict[str, Any], cached: bool
) -> None:
    """A window slides on, or a block behind the first is open: such a request is never preempted."""
    options = {"max_model_len": 128, "max_num_batched_tokens": 64, "max_num_seqs": 8, **options}
    engine = Adaptive(family, 9, enable_prefix_caching=cached, **options)
    rng = random.Random(5)
    for i in range(12):
        engine.add(str(i), rng.randint(1, 60), rng.randint(1, 68), float(i), **how)
    running = 0
    while engine.scheduler.requests:
        assert engine.steps < 2000
        engine.step()
        running = max(running, len(engine.scheduler.running))
    assert engine.preempted == []
    assert running > 1
    assert engine.scheduler.reset_prefix_cache(), "KV blocks are held"


def test_a_cache_that_cannot_hold_one_request_is_refused() -> None:
    with pytest.raises(ValueError, match=r"num_gpu_blocks_override=4 .* 96 tokens.*max_model_len=128"):
        Engine("sdar", 4, max_model_len=128, enable_prefix_caching=False)
