# SPDX-License-Identifier: Apache-2.0
"""Elastic rows: most steps of a block compute a part of it, and the ids are those of a plain loop."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from tests.engine.cases import (
    Case,
    assert_as_reference,
    expected,
    mixed_batch,
    random_prompt,
    reference,
    run,
)
from tests.engine.conftest import IN_PROCESS, run_elsewhere
from tests.reference.elastic_rows import Elastic, decode

STATIC, SEQUENTIAL, DYNAMIC = "low_confidence_static", "sequential", "low_confidence_dynamic"


def elastic(
    prompt: int,
    max_tokens: int,
    block: int,
    steps: int | None,
    candidates: int,
    algorithm: str = STATIC,
    **more: Any,
) -> Case:
    """A request with elastic rows, whose prompt has ``prompt`` tokens."""
    own: Any = (("diffusion_rows", "elastic"), ("diffusion_row_candidates", candidates))
    return Case(
        random_prompt(prompt, 40 + (steps or 0)),
        max_tokens,
        algorithm,
        block,
        steps,
        own=own,
        **more,
    )


CASES = [
    elastic(33, 40, 16, 4, 8),
    elastic(32, 48, 16, 16, 1),
    elastic(30, 48, 16, 8, 6),
    elastic(7, 30, 8, 3, 5, SEQUENTIAL),
    elastic(130, 64, 16, 5, 8),
    elastic(15, 40, 16, 2, 2),
    elastic(45, 40, 16, 16, 3),
    elastic(21, 30, 4, 4, 1),
    elastic(64, 40, 16, 8, 4, max_steps=5),
    elastic(33, 60, 16, 16, 4, DYNAMIC, threshold=0.4),
    elastic(40, 40, 16, 8, 3, DYNAMIC, threshold=0.5),
    elastic(18, 40, 16, None, 5, "threshold", threshold=0.5),
    elastic(70, 40, 16, 16, 4, DYNAMIC, threshold=0.5, max_steps=4),
]


@cache
def spoken(case: Case) -> Elastic:
    """What the plain loop makes of a request."""
    assert case.block_length is not None
    return decode(
        reference(),
        list(case.prompt),
        case.max_tokens,
        case.block_length,
        case.steps or case.block_length,
        int(dict(case.own)["diffusion_row_candidates"]),
        case.algorithm,
        case.max_steps,
        case.threshold or 0.0,
    )


def check(results: list[dict[str, Any]], cases: list[Case]) -> None:
    """Ids, the step that unmasked each of them, and how many there were."""
    for result, case in zip(results, cases, strict=True):
        want = spoken(case)
        assert result["token_ids"] == want.output_ids, case
        assert result["unmask_steps"] == want.unmask_step, case
        assert result["steps"] == want.denoising_steps, case


def test_the_cases_are_no_exact_ones() -> None:
    """Most of them say something else than exact rows do, and compute fewer rows."""
    assert sum(spoken(case).output_ids != expected(case).output_ids for case in CASES[:7]) >= 5
    for case in CASES:
        assert case.block_length is not None
        rows = [len(computed) for computed in spoken(case).computed]
        assert sum(rows) < len(rows) * case.block_length or case.steps == 2


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.block_length} in {case.steps}")
def test_alone(engine: Any, case: Case) -> None:
    check(run(engine, [case]), [case])


def test_in_a_batch_with_exact_requests(engine: Any) -> None:
    """Exact requests say what they say without the others, under whatever rules."""
    exact = mixed_batch()[:6]
    results = run(engine, [*CASES, *exact])
    check(results[: len(CASES)], CASES)
    assert_as_reference(results[len(CASES) :], exact)


def test_every_candidate_is_as_exact_as_its_keys(engine: Any) -> None:
    """Blocks of one step have no later one: nothing is left out."""
    case = elastic(33, 40, 16, 1, 1)
    assert run(engine, [case])[0]["token_ids"] == expected(replace(case, own=())).output_ids


def test_probabilities_and_log_probabilities(engine: Any) -> None:
    """They are those of the step that unmasked a token, whichever row it had."""
    case = replace(CASES[2], logprobs=0)
    (result,) = run(engine, [case])
    check([result], [CASES[2]])
    assert result["logprobs"] == pytest.approx(
        [math.log(p) for p in result["probabilities"]], rel=1e-4, abs=1e-5
    )


def test_no_request_depends_on_the_batch(engine: Any) -> None:
    """Draws and filters read the rows that are there; policies in Python find theirs."""
    drawn = replace(CASES[0], temperature=0.8, top_k=20, top_p=0.9, seed=7)
    python = [
        Case(random_prompt(33, 9), 30, "hierarchical", 16, threshold=0.5),
        Case(random_prompt(20, 9), 30, "random", 8, steps=4, seed=3),
        Case(random_prompt(17, 9), 30, "edit", 16, threshold=0.3),
    ]
    alone = [run(engine, [case])[0]["token_ids"] for case in (drawn, *python)]
    assert alone[0] != spoken(CASES[0]).output_ids
    *others, beside, one, two, three = run(engine, [*CASES, drawn, *python])
    assert [result["token_ids"] for result in (beside, one, two, three)] == alone
    check(others, CASES)


def test_asynchronous_and_preempted() -> None:
    """A preempted request begins its block anew, with all rows; a dynamic one beside it ends unforeseen."""
    other = [
        Case(random_prompt(60, 5), 60, "low_confidence_dynamic", 16, threshold=0.3),
        Case(random_prompt(41, 5), 60, "low_confidence_static", 8, steps=3),
    ]
    cases = [*CASES, *other]
    (results,) = run_elsewhere(
        [cases],
        env=IN_PROCESS,
        async_scheduling=True,
        max_model_len=256,
        max_num_batched_tokens=64,
        block_size=32,
        num_gpu_blocks_override=14,
        enable_prefix_caching=False,
    )
    assert results[-1]["vllm:num_preemptions"] > 0
    for result, case in zip(results[:-1], cases, strict=True):
        # A preempted block is denoised once more: only its ids are the same.
        want = spoken(case) if case.own else expected(case)
        assert result["token_ids"] == want.output_ids, case
