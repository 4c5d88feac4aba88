# SPDX-License-Identifier: Apache-2.0
"""LLaDA2.0's and 2.1's published code gave these ids; the engine must give the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.cases import Case, random_prompt, run
from tests.engine.conftest import GOLDEN, run_elsewhere, started
from tests.engine.golden import cases_of
from tests.engine.likelihoods import ESTIMATORS, assert_scores, params_of, scored
from tests.policies.odd import install
from tests.reference.likelihood import scores
from tests.reference.moe import Llada2Reference

FOLDER = GOLDEN / "llada2"
CASES = cases_of(FOLDER)
EDITED = cases_of(FOLDER, "cases_llada21_editing")
LLADA2_SETTINGS: dict[str, Any] = {"model": str(FOLDER), "diffusion_config": None}


@pytest.fixture(scope="module")
def llada2() -> Iterator[Any]:
    """An engine of the golden checkpoint with the family's defaults."""
    yield from started(**LLADA2_SETTINGS)


def of_golden(case: dict[str, Any]) -> Case:
    """A golden case as a request; its parameters are the published code's."""
    params = case["params"]
    if "editing_threshold" in params:
        return Case(
            prompt=tuple(case["prompt_ids"]),
            max_tokens=params["gen_length"],
            algorithm="edit",
            block_length=params["block_length"],
            threshold=params["threshold"],
            edit_threshold=params["editing_threshold"],
            max_post_steps=params["max_post_steps"],
            temperature=params["temperature"],
            stop_token_ids=(params["eos_id"],),
        )
    return Case(
        prompt=tuple(case["prompt_ids"]),
        max_tokens=params["gen_length"],
        algorithm="low_confidence_dynamic",
        block_length=params["block_length"],
        steps=min(params["steps"], params["gen_length"] // params["minimal_topk"]),
        threshold=params["threshold"],
        temperature=params["temperature"],
        # The published loop always ends behind the block that holds one.
        stop_token_ids=(params["eos_id"],),
    )


def check(result: dict[str, Any], case: dict[str, Any]) -> None:
    """Ids, order of unmasking and forward passes are the published ones."""
    count = len(case["output_ids"])
    assert result["token_ids"] == case["output_ids"]
    assert result["unmask_steps"] == case["unmask_step"][:count]
    if case["unmask_conf"] is not None:
        assert result["probabilities"] == pytest.approx(case["unmask_conf"][:count], abs=1e-4)
    assert result["steps"] == case["num_forward"]


def test_likelihood(llada2: Any) -> None:
    reference = Llada2Reference(FOLDER)
    texts = [list(random_prompt(length, 85)) for length in (9, 45)] * 2
    ways = [estimator for estimator in ESTIMATORS for _ in range(2)]
    outputs = scored(llada2, texts, [params_of(likelihood=way, max_tokens=3) for way in ways])
    for text, way, output in zip(texts, ways, outputs, strict=True):
        at_once = way == "one_step"
        want = scores(lambda ids: reference.logits(ids, 32), text, reference.mask_id, 1, 32, at_once=at_once)
        assert_scores(output, text, want)


def test_alone(llada2: Any) -> None:
    for case in CASES + EDITED:
        check(run(llada2, [of_golden(case)])[0], case)


def test_batched(llada2: Any) -> None:
    twice = CASES + EDITED + CASES[::-1] + EDITED[::-1]
    for result, case in zip(run(llada2, [of_golden(case) for case in twice]), twice, strict=True):
        check(result, case)


def test_defaults_are_the_published_ones(llada2: Any) -> None:
    """With no parameters: blocks of 32, one step a token, threshold 0.95."""
    from vllm import SamplingParams

    case = next(c for c in CASES if c["name"] == "p7_g32_b32_s32_t95")
    params = SamplingParams(temperature=0, max_tokens=32, detokenize=False)
    output = llada2.generate({"prompt_token_ids": case["prompt_ids"]}, params, use_tqdm=False)[0]
    assert list(output.outputs[0].token_ids) == case["output_ids"]


def test_a_mask_token_in_the_prompt_is_text(llada2: Any) -> None:
    reference = Llada2Reference(FOLDER)
    prompt = list(random_prompt(37, 3))
    prompt[5] = prompt[34] = prompt[-1] = reference.mask_id
    case = Case(tuple(prompt), 12, "low_confidence_dynamic", 8, threshold=0.6)
    want = reference.generate(prompt, 12, 8, 8, case.algorithm, 0.6)
    assert run(llada2, [case])[0]["token_ids"] == want.output_ids


@pytest.mark.every_mode
def test_two_ranks(tmp_path: Path) -> None:
    """The same ids where heads and experts are split over two processes; a policy may fail on one."""
    env = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "PYTHONPATH": os.pathsep.join([str(install(tmp_path)), os.environ.get("PYTHONPATH", "")]),
    }
    cases = [of_golden(case) for case in CASES] + [Case(random_prompt(9, 61), 32, "lonely", None)]
    (results,) = run_elsewhere([cases], env=env, **LLADA2_SETTINGS, tensor_parallel_size=2)
    for result, case in zip(results[: len(CASES)], CASES, strict=True):
        check(result, case)
    lonely = results[len(CASES)]["stop_reason"]
    assert "diffusion_algorithm='lonely': select() raised RuntimeError: on this rank (request " in lonely
