# SPDX-License-Identifier: Apache-2.0
"""Stable-DiffCoder: the published ids; its last block is short where the prompt is no multiple."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.cases import Case, random_prompt, run
from tests.engine.conftest import GOLDEN, started
from tests.engine.golden import cases_of
from tests.engine.likelihoods import ESTIMATORS, assert_scores, params_of, scored
from tests.reference.likelihood import scores
from tests.reference.sdar import StableDiffcoderReference

FOLDER = GOLDEN / "stable-diffcoder"
CASES = cases_of(FOLDER)


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """An engine for blocks of up to 16 tokens."""
    yield from started(model=str(FOLDER), async_scheduling=True)


def of_golden(case: dict[str, Any]) -> Case:
    """A golden case as a request: the published steps are the whole answer's."""
    params = case["params"]
    length, block, threshold = params["gen_length"], params["block_length"], params["threshold"]
    stop = () if params["eos_id"] is None else (params["eos_id"],)
    how: dict[str, Any] = {"algorithm": "threshold", "threshold": threshold}
    if threshold is None:
        steps = params["steps"] // (length // block)
        how = {"algorithm": "low_confidence_spread", "steps": steps}
    return Case(tuple(case["prompt_ids"]), length, block_length=block, stop_token_ids=stop, **how)


def check(result: dict[str, Any], case: dict[str, Any]) -> None:
    """Ids, order of unmasking and forward passes are the published ones.

    The published code returns the block that holds the end token, filled up with it.
    """
    ids, steps = case["output_ids"], case["unmask_step"]
    if (stop := case["params"]["eos_id"]) is not None:
        used = ids.index(stop) + 1
        assert set(ids[used:]) <= {stop}
        ids, steps = ids[:used], steps[:used]
    else:
        assert result["steps"] == case["num_forward_detail"]["denoise"], case["name"]
    assert result["token_ids"] == ids, case["name"]
    assert result["unmask_steps"] == steps, case["name"]


def test_the_reference_network_is_the_published_one() -> None:
    """What the engine's network is compared with in ``test_parts.py``."""
    published = np.load(FOLDER / "first_forward_logits.npz")
    ids = published["input_ids"].tolist()
    got = StableDiffcoderReference(FOLDER).logits(ids, 4)
    torch.testing.assert_close(got, torch.from_numpy(published["logits"]), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_likelihood(engine: Any, estimator: str) -> None:
    """Steps are planned ahead. The last block ends with the text, as that of an answer does."""
    reference = StableDiffcoderReference(FOLDER)
    texts = [list(random_prompt(length, 91)) for length in (6, 16, 45)]
    plain = [params_of(max_tokens=8, prompt_logprobs=None) for _ in texts]
    asked = [params_of(max_tokens=8, likelihood=estimator) for _ in texts]
    outputs = scored(engine, texts + texts, asked + plain)
    for text, output, other in zip(texts, outputs, outputs[3:], strict=False):
        want = scores(
            lambda ids: reference.logits(ids, 16),
            text,
            reference.mask_id,
            1,
            16,
            text_end=True,
            at_once=estimator == "one_step",
        )
        assert_scores(output, text, want)
        assert output.outputs[0].token_ids == other.outputs[0].token_ids


def test_golden_alone(engine: Any) -> None:
    for case in CASES:
        check(run(engine, [of_golden(case)])[0], case)


def test_golden_batched(engine: Any) -> None:
    for result, case in zip(run(engine, [of_golden(c) for c in CASES]), CASES, strict=True):
        check(result, case)
