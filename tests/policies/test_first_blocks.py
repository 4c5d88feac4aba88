# SPDX-License-Identifier: Apache-2.0
"""Prompts wait while requests finish their first block, for a quarter of their own time at most."""

from __future__ import annotations

from typing import Any

import pytest

from tests.policies.scheduling import Engine
from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.diffusion.core.scheduler import DiffusionScheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

BUDGET = 256
"""Tokens of a step. Steps without prompts count as 32 on a CPU, so that two fit into a quarter of it."""


@pytest.fixture
def scheduler() -> DiffusionScheduler:
    """Of a block-causal model with blocks of 8."""
    engine = Engine(
        "sdar",
        512,
        kv_block=16,
        block_length=8,
        max_model_len=2048,
        max_num_seqs=8,
        max_num_batched_tokens=BUDGET,
        enable_prefix_caching=False,
    )
    return engine.scheduler


def add(scheduler: DiffusionScheduler, name: str, prompt: int) -> None:
    """Admits a request that takes eight steps a block."""
    how = DiffusionParams(algorithm="low_confidence_static", steps=8).to_extra_args()
    params = SamplingParams(temperature=0, max_tokens=16, extra_args=how)
    scheduler.add_request(Request(name, list(range(prompt)), params, None, block_hasher=None))


def step(scheduler: DiffusionScheduler, **emitted: int) -> dict[str, int]:
    """Tokens of each request in a step, whose output arrives before the next one is planned."""
    planned: SchedulerOutput = scheduler.schedule()
    names = list(planned.num_scheduled_tokens)
    output = ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: i for i, name in enumerate(names)},
        sampled_token_ids=[[7] * emitted.get(name, 0) for name in names],
    )
    scheduler.update_from_output(planned, output)
    return dict(planned.num_scheduled_tokens)


def test_a_first_block_goes_first(scheduler: DiffusionScheduler) -> None:
    """Two steps alone, one with a chunk of the prompt, and so on until the block is finished."""
    add(scheduler, "a", 64)
    assert step(scheduler) == {"a": 72}
    add(scheduler, "b", 1000)
    taken: list[Any] = [step(scheduler, a=8 * (i == 6)) for i in range(7)]
    alone, beside = {"a": 8}, {"a": 8, "b": BUDGET - 8}
    assert taken == [alone, alone, beside, alone, alone, beside, alone]
    assert step(scheduler) == {"a": 16, "b": BUDGET - 16}, "the first block is there: nothing waits"
    assert step(scheduler) == {"a": 8, "b": BUDGET - 8}


def test_short_prompts_do_not_wait(scheduler: DiffusionScheduler) -> None:
    """What they cost is less than four steps."""
    add(scheduler, "a", 64)
    step(scheduler)
    add(scheduler, "b", 120)
    assert step(scheduler) == {"a": 8, "b": 128}


def test_many_waiting_prompts_are_a_long_one(scheduler: DiffusionScheduler) -> None:
    add(scheduler, "a", 64)
    step(scheduler)
    for name in "bcd":
        add(scheduler, name, 60)
    assert step(scheduler) == {"a": 8}
    assert step(scheduler) == {"a": 8, "b": 64, "c": 64, "d": 64}
