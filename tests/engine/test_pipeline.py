# SPDX-License-Identifier: Apache-2.0
"""The same ids where the layers are spread over two pipeline stages."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engine import checkpoints, test_fast_dllm_v2, test_llada
from tests.engine.cases import (
    Case,
    assert_as_reference,
    expected,
    mixed_batch,
    of_golden,
    random_prompt,
    reference,
)
from tests.engine.conftest import run_elsewhere
from tests.engine.golden import check
from tests.engine.likelihoods import ESTIMATORS, TOLERANCE
from tests.reference.likelihood import scores

TWO_STAGES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}


def run_in_two(batches: list[list[Case]], **settings: Any) -> list[list[dict[str, Any]]]:
    """Runs batches in an engine of two stages; see ``run_elsewhere``."""
    return run_elsewhere(batches, env=TWO_STAGES, pipeline_parallel_size=2, **settings)


@pytest.mark.parametrize("async_scheduling", [pytest.param(False, marks=pytest.mark.every_mode), True])
def test_block_causal(golden_cases: list[dict[str, Any]], async_scheduling: bool) -> None:
    """Alone, in a mixed batch, and where requests are preempted and prompts come in small chunks."""
    mixed = [case for case in mixed_batch() if len(case.prompt) < 200]
    short = [Case(random_prompt(n, 11), 1, "low_confidence_static", 16, steps=4) for n in (1, 33)]
    crowd = [
        Case(
            random_prompt(33 + 8 * i, 5),
            60,
            "low_confidence_dynamic",
            (4, 8, 16)[i % 3],
            threshold=0.3,
            likelihood=ESTIMATORS[i % 2] if i < 4 else None,
        )
        for i in range(12)
    ]
    alone, *batches = run_in_two(
        [[of_golden(golden_cases[1])], mixed + short, crowd],
        async_scheduling=async_scheduling,
        max_model_len=256,
        max_num_batched_tokens=64,
        block_size=32,
        num_gpu_blocks_override=12,
        enable_prefix_caching=False,
    )
    check(alone[0], golden_cases[1])
    assert batches[1][-1]["vllm:num_preemptions"] > 0
    sdar = reference()
    for result, case in zip(batches[1][:4], crowd[:4], strict=True):
        block = case.block_length
        assert block is not None
        logits = partial(sdar.logits, block_length=block)
        at_once = case.likelihood == "one_step"
        want = scores(logits, list(case.prompt), sdar.mask_id, 1, block, at_once=at_once)
        assert result["scores"] == pytest.approx(want, abs=TOLERANCE)
    for results, cases in zip(batches, (mixed + short, crowd), strict=True):
        # A preempted block is denoised once more: its ids are the same, its steps are not.
        if results.pop()["vllm:num_preemptions"]:
            assert [r["token_ids"] for r in results] == [expected(case).output_ids for case in cases]
        else:
            assert_as_reference(results, cases)


@pytest.mark.every_mode
def test_bidirectional() -> None:
    """Every cache mode; a budget that requests wait for."""
    golden, cases = test_llada.published(), test_llada.mixed()
    guided = test_llada.guided_cases()
    first, second, third = run_in_two(
        [[test_llada.of_golden(case) for case in golden], cases, guided],
        model=str(test_llada.FOLDER),
        max_model_len=512,
        max_num_batched_tokens=512,
        diffusion_config={"block_length": 64, "cache": test_llada.OWN_MODE},
    )
    for result, case in zip(first[:-1], golden, strict=True):
        assert result["token_ids"] == case["output_ids"], case["name"]
    for result, request in zip(second[:-1], cases, strict=True):
        want = test_llada.expected(request)
        assert result["token_ids"] == want.output_ids, request
        assert result["unmask_steps"] == want.unmask_step, request
        assert result["steps"] == want.denoising_steps, request
    for result, request in zip(third[:-1], guided, strict=True):
        assert result["token_ids"] == test_llada.expected_guided(request).output_ids, request


@pytest.mark.every_mode
def test_shifted(tmp_path: Path) -> None:
    """An anchor's token is in the next step's canvas."""
    folder = checkpoints.fast_dllm_v2(tmp_path)
    cases = [
        test_fast_dllm_v2.CaseOf(random_prompt(n, 62), 40, block_length=(32, 8)[i % 2], threshold=0.4)
        for i, n in enumerate(test_fast_dllm_v2.LENGTHS)
    ]
    (results,) = run_in_two([cases], model=str(folder), diffusion_config=None)
    test_fast_dllm_v2.check_results(results[:-1], folder, cases)
