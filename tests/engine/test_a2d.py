# SPDX-License-Identifier: Apache-2.0
"""A2D: ids of the published MDLM and BD3LM samplers, of one checkpoint each backbone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.cases import Case, random_prompt, run
from tests.engine.conftest import GOLDEN, SETTINGS
from tests.engine.likelihoods import ESTIMATORS, assert_scores, params_of, scored
from tests.reference.likelihood import scores
from tests.reference.sdar import SdarReference

MASK = 508
OWN = ("cfg_scale", "right_shift_logits", "suppress_tokens")
"""Published parameters that no request has; those that are served have tests of their own."""


def published(folder: str, file: str, *own: str) -> list[dict[str, Any]]:
    """The folder's golden cases that set just these of the published parameters above."""
    cases: list[dict[str, Any]] = json.loads((GOLDEN / folder / file).read_text())["cases"]
    found = [case for case in cases if {*own} == {*OWN} & case["params"].keys()]
    assert found
    return found


def of_golden(case: dict[str, Any]) -> Case:
    """A golden case as a request: the published steps are the whole answer's."""
    params = case["params"]
    length, block = params["max_new_tokens"], params["block_size"]
    steps = params.get("steps_per_block") or -(-params["steps"] // -(-length // block))
    scale = params.get("cfg_scale")
    own = () if scale is None else (("diffusion_cfg_scale", scale),)
    return Case(
        tuple(case["prompt_ids"]), length, "low_confidence_linear", min(block, length), steps=steps, own=own
    )


def check(llm: Any, cases: list[dict[str, Any]]) -> None:
    """Ids, order of unmasking and forward passes are the published ones, alone and in one batch."""
    requests = [of_golden(case) for case in cases]
    alone = [run(llm, [request])[0] for request in requests]
    for results in (alone, run(llm, requests)):
        for result, case in zip(results, cases, strict=True):
            assert result["token_ids"] == case["output_ids"], case["name"]
            assert result["unmask_steps"] == case["unmask_step"], case["name"]
            assert result["steps"] == case["num_forward_detail"]["denoise"], case["name"]


@pytest.mark.parametrize(("name", "block"), [("logits", None), ("logits_block4", 4)])
@pytest.mark.parametrize("folder", ["a2d-qwen3", "a2d-llama"])
def test_the_reference_network_is_the_published_one(folder: str, name: str, block: int | None) -> None:
    """What the engine's networks are compared with in ``test_parts.py``."""
    published_logits = np.load(GOLDEN / folder / "first_forward_logits.npz")
    ids = published_logits["input_ids"].tolist()
    got = SdarReference(GOLDEN / folder).logits(ids, block or len(ids))
    torch.testing.assert_close(got, torch.from_numpy(published_logits[name]), atol=2e-4, rtol=1e-4)


def start(folder: str, **diffusion_config: Any) -> Any:
    """An engine of a golden folder."""
    from vllm import LLM

    own = {"model": str(GOLDEN / folder), "diffusion_config": diffusion_config or None}
    return LLM(**SETTINGS | own | {"async_scheduling": True})


@pytest.fixture(scope="module", params=["a2d-qwen3", "a2d-llama"])
def mdlm(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """An engine of either backbone, with the family's defaults."""
    llm = start(request.param)
    yield request.param, llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module", params=["a2d-qwen3", "a2d-llama"])
def bd3lm(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """The same checkpoints, block-causal."""
    llm = start(request.param, attention="block_causal")
    yield request.param, llm
    llm.llm_engine.engine_core.shutdown()


def test_mdlm(mdlm: tuple[str, Any]) -> None:
    folder, llm = mdlm
    check(llm, published(folder, "cases.json"))


def test_tokens_that_are_never_written(mdlm: tuple[str, Any]) -> None:
    folder, llm = mdlm
    if folder != "a2d-qwen3":
        pytest.skip("no golden case")
    for case in published(folder, "cases.json", "suppress_tokens"):
        # The mask is never generated, so it may not be named.
        allowed = sorted(set(range(512)) - {MASK, *case["params"]["suppress_tokens"]})
        params = of_golden(case).sampling_params()
        params.allowed_token_ids = allowed
        (output,) = llm.generate({"prompt_token_ids": case["prompt_ids"]}, params, use_tqdm=False)
        assert list(output.outputs[0].token_ids) == case["output_ids"]


def test_guidance(mdlm: tuple[str, Any]) -> None:
    """Its published case, alone and beside requests without guidance."""
    folder, llm = mdlm
    if folder != "a2d-qwen3":
        pytest.skip("no golden case")
    guided = published(folder, "cases.json", "cfg_scale")
    check(llm, guided)
    check(llm, [*published(folder, "cases.json")[:2], *guided])


def test_guidance_is_refused_where_prompts_are_cached(bd3lm: tuple[str, Any]) -> None:
    _, llm = bd3lm
    (case,) = published("a2d-qwen3", "cases_bd3lm.json", "cfg_scale")
    with pytest.raises(ValueError, match=r"diffusion_cfg_scale=0.5 is not supported by this model, but by"):
        run(llm, [of_golden(case)])


def test_bd3lm(bd3lm: tuple[str, Any]) -> None:
    folder, llm = bd3lm
    check(llm, published(folder, "cases_bd3lm.json"))


def check_likelihood(llm: Any, folder: str, shifted: bool = False) -> None:
    """Blocks count from the first token that is scored, and the last one ends with the text."""
    reference = SdarReference(GOLDEN / folder)

    def logits(ids: list[int]) -> torch.Tensor:
        rows = reference.logits(ids, 4)
        return torch.cat((rows[:1], rows[:-1])) if shifted else rows

    text = list(random_prompt(21, 95))
    for estimator in ESTIMATORS:
        params = params_of(likelihood=estimator, score_from=8, block_length=4, max_tokens=6)
        plain = params_of(prompt_logprobs=None, block_length=4, max_tokens=6)
        output, other = scored(llm, [text] * 2, [params, plain])
        at_once = estimator == "one_step"
        want = scores(logits, text, MASK, 8, 4, text_end=True, at_once=at_once)
        assert_scores(output, text, want, 8)
        assert output.outputs[0].token_ids == other.outputs[0].token_ids


def test_likelihood(bd3lm: tuple[str, Any]) -> None:
    folder, llm = bd3lm
    check_likelihood(llm, folder)


def test_prompts_in_chunks_and_end_tokens(bd3lm: tuple[str, Any]) -> None:
    """Blocks end where they end whatever a prompt is cut into; an answer ends behind its end token."""
    folder, llm = bd3lm
    for case in published(folder, "cases_bd3lm.json")[:2]:
        stop = case["output_ids"][len(case["output_ids"]) // 2]
        request = replace(of_golden(case), stop_token_ids=(stop,))
        want = case["output_ids"][: case["output_ids"].index(stop) + 1]
        assert run(llm, [request])[0]["token_ids"] == want


@pytest.mark.parametrize(("attention", "file"), [(None, "cases.json"), ("block_causal", "cases_bd3lm.json")])
def test_shifted_logits(attention: str | None, file: str) -> None:
    llm = start("a2d-qwen3", right_shift_logits=True, attention=attention)
    try:
        check(llm, published("a2d-qwen3", file, "right_shift_logits"))
        if attention is not None:
            check_likelihood(llm, "a2d-qwen3", shifted=True)
    finally:
        llm.llm_engine.engine_core.shutdown()
