# SPDX-License-Identifier: Apache-2.0
"""Open-dLLM: the published ids of a folder that is named Qwen2, and what its name is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.cases import Case, run
from tests.engine.conftest import GOLDEN, started
from tests.engine.golden import cases_of
from tests.reference.bidirectional import DreamReference

FOLDER = GOLDEN / "open-dllm"
CASES = cases_of(FOLDER)


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """An engine of the folder, with no other word on what it is."""
    yield from started(model=str(FOLDER), diffusion_config=None, async_scheduling=True)


def of_golden(case: dict[str, Any]) -> Case:
    """A golden case as a request."""
    params = case["params"]
    eps = None if params["alg"] == "p2" else params["eps"]
    length = params["max_new_tokens"]
    return Case(tuple(case["prompt_ids"]), length, params["alg"], None, steps=params["steps"], eps=eps)


def check(result: dict[str, Any], case: dict[str, Any]) -> None:
    """Ids, the last change of every position and forward passes are the published ones."""
    assert result["token_ids"] == case["output_ids"], case["name"]
    assert result["unmask_steps"] == case["unmask_step"], case["name"]
    assert result["steps"] == case["num_forward"], case["name"]


def test_the_reference_network_is_the_published_one() -> None:
    """What the engine's network is compared with in ``test_parts.py``."""
    published = np.load(FOLDER / "first_forward_logits.npz")
    ids = published["input_ids"].tolist()
    got = DreamReference(FOLDER).forward(ids, range(len(ids)), [])
    torch.testing.assert_close(got, torch.from_numpy(published["logits"]), atol=2e-4, rtol=1e-4)


def test_golden_alone(engine: Any) -> None:
    for case in CASES:
        check(run(engine, [of_golden(case)])[0], case)


def test_golden_batched(engine: Any) -> None:
    for result, case in zip(run(engine, [of_golden(c) for c in CASES]), CASES, strict=True):
        check(result, case)


def test_remasking_follows_the_seed(engine: Any) -> None:
    """``p2`` draws the same tokens, and masks the same positions again, whatever shares the batch."""
    cases = [of_golden(case) for case in CASES]
    p2 = next(case for case in cases if case.algorithm == "p2")
    warm = replace(p2, temperature=0.8, seed=3)
    alone = run(engine, [warm])[0]
    assert run(engine, [*cases[:3], warm])[-1] == alone
    assert run(engine, [replace(warm, seed=4)])[0]["token_ids"] != alone["token_ids"]
