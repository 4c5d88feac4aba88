# SPDX-License-Identifier: Apache-2.0
"""How many kernels a policy runs on a GPU, by the profiler; ``tests/sampling`` counts without one."""

from __future__ import annotations

import pytest
import torch

from tests.sampling.launches import BOOST, REDRAW, SELECT, canvas, kernels, question
from vllm.v1.diffusion.policies import get_policy

SORT = 6
"""Kernels more that torch may take for the two sorts of a policy, and for reductions of a row."""


# A wide canvas of `credit` is computed in parts, of bounded memory.
@pytest.mark.parametrize(
    ("name", "requests", "width"),
    [
        (name, requests, width)
        for name in [*SELECT, *BOOST, *REDRAW]
        for requests, width in [(1, 32), (8, 2048)]
        if (name, width) != ("credit", 2048)
    ],
)
def test_a_policy(name: str, requests: int, width: int) -> None:
    """No more than it launches operators, but for what torch needs several kernels for."""
    policy = get_policy(name)
    asked = canvas(policy, requests, width, torch.device("cuda"))
    counted = kernels(lambda: question(policy)(*asked))
    assert 0 < counted.total() <= (SELECT | BOOST | REDRAW)[name] + SORT, counted


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_dreams_noise_is_one_kernel(temperature: float) -> None:
    policy = get_policy("entropy")
    asked = canvas(policy, 1, 32, torch.device("cuda"), position_temperature=temperature)
    counted = kernels(lambda: policy.select(*asked))
    drawn = sum(count for name, count in counted.items() if "noise_kernel" in name)
    assert drawn == (temperature > 0), counted


@pytest.mark.parametrize("name", [*SELECT, *BOOST, *REDRAW])
def test_a_policy_waits_for_nothing(name: str) -> None:
    policy = get_policy(name)
    asked = canvas(policy, 4, 32, torch.device("cuda"), position_temperature=0.5)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        question(policy)(*asked)
    finally:
        torch.cuda.set_sync_debug_mode("default")
