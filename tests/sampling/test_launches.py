# SPDX-License-Identifier: Apache-2.0
"""How many launches a step takes, by policy: a count that may fall but not grow unseen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.sampling.launches import BOOST, REDRAW, SELECT, Launches, canvas, launches, question
from tests.sampling.rig import Request, Rig
from vllm import SamplingParams
from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies import built_in_policies, get_policy
from vllm.v1.diffusion.sampling.sampler import DenoisingSampler

RULE_STEP = 32
"""Most launches of a step whose requests' policy is a rule of the kernel, temperature 0."""

STEP = {
    "credit": 122,
    "d3llm": 225,
    "daedal": 272,
    "edit": 150,
    "insert_delete": 307,
    "low_confidence_linear": 131,
    "multi_block": 120,
    "p2": 184,
    "self_speculation": 293,
    "self_speculation_edit": 363,
}
"""Most launches of a step, temperature 0, where the policy is written in Python."""

OTHER_STEP = 110

DRAWN = 25
"""Launches more, at most, of a step that draws tokens. ``credit``, ``daedal`` and ``insert_delete`` read
logits twice."""


def asks(name: str) -> bool:
    """Whether the policy is Python code."""
    policy = get_policy(name)
    return policy.rule is Rule.GIVEN or policy.boosts


def test_every_policy_has_a_maximum() -> None:
    assert SELECT.keys() | BOOST.keys() | REDRAW.keys() == {
        name for name in built_in_policies() if asks(name)
    }


@pytest.mark.parametrize("requests", [1, 5])
@pytest.mark.parametrize("name", [*SELECT, *BOOST, *REDRAW])
def test_a_policy(name: str, requests: int) -> None:
    policy = get_policy(name)
    asked = canvas(policy, requests, 32, torch.device("cpu"))
    counted = launches(lambda: question(policy)(*asked))
    assert counted.total <= (SELECT | BOOST | REDRAW)[name], counted.counts


@pytest.mark.parametrize("name", ["entropy", "maskgit_plus", "topk_margin"])
def test_noise_is_drawn_where_it_is_asked_for(name: str) -> None:
    """One operator, and none for requests that take the best positions."""
    policy = get_policy(name)
    for temperature, drawn in ((0.0, 0), (0.5, 1)):
        asked = canvas(policy, 3, 32, torch.device("cpu"), position_temperature=temperature)
        counted = launches(lambda: policy.select(*asked))  # noqa: B023  called at once
        assert counted.counts["vllm_diffusion::noise"] == drawn
        assert counted.total <= SELECT[name] + 8 * drawn, counted.counts


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Launches]:
    """What each call of the sampler launched."""
    calls: list[Launches] = []
    step = DenoisingSampler.__call__

    def counting(self: Any, *args: Any, **rest: Any) -> Any:
        with Launches() as mode:
            output = step(self, *args, **rest)
        calls.append(mode)
        return output

    monkeypatch.setattr(DenoisingSampler, "__call__", counting)
    return calls


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", built_in_policies())
def test_a_step(name: str, temperature: float, counted: list[Launches]) -> None:
    """The whole of the sampler, for two requests of one policy, from the second step of a block on."""
    rig = Rig()
    request = Request(
        SamplingParams(temperature=temperature, seed=3),
        [1, 2, 3, 4],
        algorithm=name,
        block_length=8,
        values={number: one.default or 0.9 for number, one in get_policy(name).numbers.items()},
        trace=False,
    )
    rig.add(request)
    rig.add(request)
    for _ in range(3):
        rig.step()
    most = STEP.get(name, OTHER_STEP) if asks(name) else RULE_STEP
    most += DRAWN if temperature else 0
    for mode in counted[1:]:
        assert 0 < mode.total <= most, mode.counts
