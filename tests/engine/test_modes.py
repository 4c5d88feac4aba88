# SPDX-License-Identifier: Apache-2.0
"""The same ids in every mode of the engine, and under pressure."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.cases import Case, assert_as_reference, mixed_batch, of_golden, random_prompt
from tests.engine.conftest import IN_PROCESS, run_elsewhere
from tests.engine.golden import check

MODES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "async": ({}, {"async_scheduling": True}),
    "in_process": (IN_PROCESS, {}),
    "in_process_async": (IN_PROCESS, {"async_scheduling": True}),
    "in_process_async_as_on_a_gpu": (IN_PROCESS, {"async_scheduling": True, "free_rows": 4096}),
    "compiled": ({}, {"enforce_eager": False}),
}


# An engine takes its time to start: a run of the whole suite makes these, ``-m every_mode`` the others.
ALWAYS = ("in_process", "in_process_async_as_on_a_gpu")


@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=[] if m in ALWAYS else pytest.mark.every_mode) for m in MODES]
)
def test_mode(mode: str, golden_cases: list[dict[str, Any]]) -> None:
    env, settings = MODES[mode]
    golden = [of_golden(case) for case in golden_cases]
    cases = mixed_batch()
    first, second, third = run_elsewhere([golden, cases, golden[4:5]], env=env, **settings)
    for result, case in zip(first[:-1], golden_cases, strict=True):
        check(result, case)
    assert_as_reference(second[:-1], cases)
    check(third[0], golden_cases[4])


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_small_cache_and_small_chunks(async_scheduling: bool) -> None:
    """Requests are preempted and resumed, prompts come in chunks of 32 tokens."""
    ways: list[dict[str, Any]] = [
        {"algorithm": "low_confidence_static", "steps": 3},
        {"algorithm": "low_confidence_dynamic", "threshold": 0.3},
    ]
    cases = [
        Case(random_prompt(33 + 8 * i, 5), 60, block_length=(4, 8, 16)[i % 3], **how)
        for i in range(6)
        for how in ways
    ]
    (results,) = run_elsewhere(
        [cases],
        env=IN_PROCESS,
        async_scheduling=async_scheduling,
        max_model_len=256,
        max_num_batched_tokens=32,
        block_size=32,
        num_gpu_blocks_override=12,
        enable_prefix_caching=False,
    )
    for result, case in zip(results[:-1], cases, strict=True):
        # A preempted block is denoised once more: only its ids are the same.
        result["unmask_steps"] = result["steps"] = None
        assert result["token_ids"] == _expected_ids(case)
    assert results[-1]["vllm:num_preemptions"] > 0


def _expected_ids(case: Case) -> list[int]:
    from tests.engine.cases import expected

    return expected(case).output_ids


def test_prefix_cache_holds_unmasked_blocks_only() -> None:
    """A second round hits the cache, over prompts and over generated blocks."""
    prompt = random_prompt(130, 6)
    first = Case(prompt, 60, "low_confidence_dynamic", 8, threshold=0.5)
    other_block = Case(prompt, 20, "low_confidence_static", 16)
    batch = [first, other_block, Case(prompt[:100], 20, "low_confidence_static", 8)]
    from tests.engine.cases import expected

    longer = Case(prompt + tuple(expected(first).output_ids), 20, "low_confidence_static", 8)
    cold, warm, grown = run_elsewhere(
        [batch, batch, [longer]],
        env=IN_PROCESS,
        block_size=32,
        enable_prefix_caching=True,
        max_num_seqs=1,
    )
    assert_as_reference(cold[:-1], batch)
    assert_as_reference(warm[:-1], batch)
    assert_as_reference(grown[:-1], [longer])
    assert [r["cached"] for r in warm[:-1]] == [128, 128, 96]
    # 190 tokens are known; the block that ended the request was never committed.
    assert grown[0]["cached"] in (160, 128)
    # A prompt's keys and values depend on the block length.
    assert cold[1]["cached"] == 0
    assert cold[2]["cached"] == 96
