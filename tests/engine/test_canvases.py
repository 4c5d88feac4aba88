# SPDX-License-Identifier: Apache-2.0
"""An answer longer than ``max_canvas_length``: each canvas is an answer to the prompt and those before it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.engine.cases import Case, random_prompt
from tests.engine.conftest import GOLDEN, run_elsewhere
from tests.engine.likelihoods import ESTIMATORS, TOLERANCE
from tests.reference.bidirectional import LladaReference
from tests.reference.likelihood import scores

CANVAS = 24
POLICIES: list[dict[str, Any]] = [
    {"algorithm": "low_confidence_static", "steps": 3},
    {"algorithm": "threshold", "threshold": 0.02},
]
CASES = [
    Case(random_prompt(7 + 3 * i, 21), max_tokens, **how, block_length=block, cache=cache)
    for i, (max_tokens, block, cache) in enumerate(
        (
            (60, 8, None),
            (50, 8, "dual"),
            (72, 8, "prefix"),
            (70, 16, "dual"),
            (24, 24, None),
            (53, 24, "prefix"),
            (10, 8, None),
        )
    )
    for how in POLICIES
]


SCORED = [
    Case(random_prompt(55, 22 + i), 30, "low_confidence_static", 8, steps=3, likelihood=estimator)
    for i, estimator in enumerate(ESTIMATORS)
]


def by_canvases(model: LladaReference, case: Case) -> list[int]:
    """What the published code writes where it is asked for one canvas after the other."""
    assert case.block_length is not None
    # A canvas holds whole blocks.
    most = CANVAS // case.block_length * case.block_length
    ids: list[int] = []
    while len(ids) < case.max_tokens:
        room = min(most, case.max_tokens - len(ids))
        block = min(case.block_length, room) if not ids else case.block_length
        prompt = [*case.prompt, *ids]
        steps, threshold = case.steps, case.threshold
        done = model.generate(prompt, room, block, steps, case.algorithm, threshold, case.cache or "none")
        ids += done.output_ids
    return ids


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_canvases_follow_each_other(async_scheduling: bool) -> None:
    """In the same batch, with every cache mode, blocks that fill a canvas and blocks that do not."""
    (results,) = run_elsewhere(
        [CASES + SCORED],
        env={"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        async_scheduling=async_scheduling,
        model=str(GOLDEN / "llada"),
        max_model_len=256,
        max_num_batched_tokens=512,
        diffusion_config={"block_length": 24, "max_canvas_length": CANVAS},
    )
    llada = LladaReference(GOLDEN / "llada")
    for result, case in zip(results[:-1], CASES + SCORED, strict=True):
        assert result["token_ids"] == by_canvases(llada, case), case
        assert len(result["token_ids"]) == case.max_tokens
    for result, case in zip(results[len(CASES) : -1], SCORED, strict=True):
        want = scores(
            lambda ids: llada.forward(ids, range(len(ids)), []),
            list(case.prompt),
            llada.mask_id,
            1,
            8,
            origin=1,
            canvas=CANVAS,
            at_once=case.likelihood == "one_step",
        )
        assert result["scores"] == pytest.approx(want, abs=TOLERANCE)


def test_one_canvas_without_a_limit() -> None:
    """What the cases are for: the canvases behind the first one are not what one canvas would be."""
    llada = LladaReference(GOLDEN / "llada")
    case = replace(CASES[0], max_tokens=60)
    assert case.block_length is not None
    whole = llada.generate(list(case.prompt), 60, case.block_length, case.steps, case.algorithm)
    assert whole.output_ids != by_canvases(llada, case)
