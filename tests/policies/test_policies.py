# SPDX-License-Identifier: Apache-2.0
"""Policies: names, what they read, and what they promise the scheduler."""

from __future__ import annotations

import itertools

import pytest
import torch

from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.kernels.unmask import unmask
from vllm.v1.diffusion.policies import (
    CanvasView,
    PositionStats,
    UnmaskingPolicy,
    get_policy,
    known_policies,
    registry,
)
from vllm.v1.diffusion.policies.base import scheduled_count
from vllm.v1.diffusion.request.params import DiffusionParams

SCHEDULED = {"low_confidence_static", "random", "sequential"}
TIMED = {"entropy", "maskgit_plus", "topk_margin"}


def steps_taken(policy: UnmaskingPolicy, masked: int, steps: int, block_length: int) -> int:
    """Denoising steps that the kernel takes to unmask a block."""
    generator = torch.Generator().manual_seed(masked * 1000 + steps)
    canvas = torch.zeros(1, block_length, dtype=torch.int64)
    open_ = torch.arange(block_length)[None] >= block_length - masked
    state = (torch.full((1, block_length), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    rule, quota, length = (
        torch.tensor([value], dtype=torch.int32) for value in (policy.rule, steps, block_length)
    )
    for taken in range(1, 10 * block_length):
        left = unmask(
            torch.ones(block_length, dtype=torch.int64),
            torch.rand(block_length, generator=generator),
            torch.rand(block_length, generator=generator),
            None,
            torch.tensor([0, block_length], dtype=torch.int32),
            torch.tensor([0]),
            canvas,
            open_,
            *state,
            rule,
            quota,
            length,
            torch.tensor([0.5]),
        )
        if left.item() == 0:
            return taken
    raise AssertionError("the block never unmasked")


SPREAD = {"least_entropy", "low_confidence_linear", "low_confidence_spread", "widest_margin"}
"""The schedules of A2D, Stable-DiffCoder and DreamOn, which are known ahead as well."""


@pytest.mark.parametrize("name", ["low_confidence_static", "sequential"])
def test_the_scheduler_is_told_the_steps_that_the_kernel_takes(name: str) -> None:
    policy = get_policy(name)
    for block_length in (1, 4, 8, 16):
        for steps in (1, 2, 3, 5, 8, 16, 20):
            for masked in range(1, block_length + 1):
                reported = policy.steps_left(masked, 0, steps, block_length)
                assert reported == steps_taken(policy, masked, steps, block_length)


@pytest.mark.parametrize("name", sorted(set(known_policies()) - SCHEDULED - TIMED - SPREAD))
def test_what_the_model_decides_is_not_foretold(name: str) -> None:
    assert get_policy(name).steps_left(4, 0, 4, 4) is None


@pytest.mark.parametrize("name", sorted(TIMED))
def test_the_scheduler_is_told_the_steps_of_a_timetable(name: str) -> None:
    """Whatever the model says, and wherever the block begins; 24 requests at a time."""
    policy = get_policy(name)
    generator = torch.Generator().manual_seed(3)
    for length, steps, made in itertools.product((1, 5, 33), (1, 2, 7, 40), (0, 1)):
        masked = torch.rand(24, length, generator=generator) < torch.linspace(0, 1, 24)[:, None]
        values = {
            "end_time": torch.tensor([1e-30, 1e-3, 0.5, 1.0]).repeat(6),
            "position_temperature": torch.tensor([0.0, 0.7]).repeat(12),
        }
        reported = [policy.steps_left(count, made, steps, length) for count in masked.sum(dim=1).tolist()]
        taken = torch.zeros(24, dtype=torch.int64)
        for step in range(made, made + max(filter(None, reported), default=0)):
            taken += masked.any(dim=1)
            top = torch.rand(24, length, generator=generator)
            stats = PositionStats(torch.zeros(24, length, dtype=torch.int64), top, -top.log(), top, top / 2)
            made_now, asked, tokens = (torch.full((24,), n, dtype=torch.int32) for n in (step, steps, length))
            zeros = torch.zeros(24, dtype=torch.int64)
            view = CanvasView(
                tokens=stats.token,
                masked=masked,
                step=made_now,
                steps=asked,
                block_length=tokens,
                unmasked=~masked,
                seed=zeros,
                position=torch.arange(length).expand(24, -1),
                values=values,
                host_values={name: value.tolist() for name, value in values.items()},
            )
            masked = masked & ~torch.as_tensor(policy.select(stats, view))
        assert not masked.any()
        assert taken.tolist() == reported, (length, steps, made)


def test_tokens_that_are_given_are_no_step_s() -> None:
    """``confidence_threshold`` counts what its steps unmasked, not a prompt's or a template's tokens."""
    policy = get_policy("confidence_threshold")
    masked = torch.arange(16)[None] >= 8
    confidence = torch.linspace(0.9, 0.1, 16)[None]
    memory = policy.make_memory(1, 16, torch.device("cpu"))
    taken = []
    for step in range(3):
        number = torch.tensor([step])
        stats = PositionStats(number, confidence, confidence, confidence, confidence)
        view = CanvasView(
            tokens=number,
            masked=masked,
            step=number,
            steps=torch.tensor([4]),
            block_length=torch.tensor([16]),
            values={"threshold": torch.tensor([0.3])},
            unmasked=~masked,
            seed=number,
            position=number,
            memory=memory,
        )
        masked = masked & ~torch.as_tensor(policy.select(stats, view))
        taken.append(8 - int(masked.sum()))
    assert taken == [4, 5, 6]  # Four more a step, of which the last four are below the threshold.


def test_a_block_is_shared_out_over_the_steps() -> None:
    assert [scheduled_count(step, 3, 8) for step in range(3)] == [3, 3, 2]
    assert [scheduled_count(step, 16, 4) for step in range(6)] == [1] * 6


def test_a_request_does_not_read_the_files_of_all_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes milliseconds, and a batch is admitted request by request."""
    known_policies()
    monkeypatch.setattr(registry, "entry_points", None)
    given = {"diffusion_algorithm": "low_confidence_static", "diffusion_steps": 4}
    assert DiffusionParams.from_extra_args(given).steps == 4
    with pytest.raises(ValueError, match="must be one of"):
        DiffusionParams.from_extra_args({"diffusion_algorithm": "unknown"})


def test_unknown_policies_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=f"Known: {', '.join(known_policies())}"):
        get_policy("guess")


def test_a_policy_without_a_rule_has_to_select() -> None:
    assert UnmaskingPolicy.rule is Rule.GIVEN
    with pytest.raises(NotImplementedError):
        UnmaskingPolicy().select(None, None)  # type: ignore[arg-type]
