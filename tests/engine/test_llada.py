# SPDX-License-Identifier: Apache-2.0
"""LLaDA: published ids and the plain reference, with each cache mode."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from tests.engine.cases import Case, random_prompt, run
from tests.engine.conftest import GOLDEN, SETTINGS, run_elsewhere
from tests.reference.bidirectional import LladaReference
from tests.reference.sdar import Decoded

FOLDER = GOLDEN / "llada"
LENGTHS = (1, 7, 33, 130)
MODES = ("none", "prefix", "dual")
OWN_MODE = "dual"


@cache
def reference() -> LladaReference:
    """The golden checkpoint in the plain reference."""
    return LladaReference(FOLDER)


def published() -> list[dict[str, Any]]:
    """The published cases, of every cache mode."""
    return [
        case
        for file in ("cases.json", "cases_fastdllm.json")
        for case in json.loads((FOLDER / file).read_text())["cases"]
    ]


def in_engine(mode: str) -> str | None:
    """How a request asks for a cache mode: the engine's own one not at all."""
    return None if mode == OWN_MODE else mode


def of_golden(case: dict[str, Any]) -> Case:
    """A published case as a request: its steps count all blocks, ours one."""
    params = case["params"]
    blocks = params["gen_length"] // params["block_length"]
    how: dict[str, Any] = {"algorithm": "low_confidence_static"}
    if params.get("threshold") is not None:
        how = {"algorithm": "threshold", "threshold": params["threshold"]}
    elif params.get("factor") is not None:
        how = {"algorithm": "factor", "factor": params["factor"]}
    else:
        how["steps"] = max(params["steps"] // blocks, 1)
    return Case(
        tuple(case["prompt_ids"]),
        params["gen_length"],
        block_length=params["block_length"],
        cache=in_engine(params.get("cache", "none")),
        confidence_eos_eot_inf=params.get("confidence_eos_eot_inf"),
        **how,
    )


@pytest.fixture(scope="module")
def llada() -> Iterator[Any]:
    """An engine whose steps are as large as its context: batches do not fit, requests wait.

    A step is planned while the one before it is in flight.
    """
    from vllm import LLM

    own = {
        "model": str(FOLDER),
        "max_model_len": 512,
        "max_num_batched_tokens": 512,
        "async_scheduling": True,
    }
    llm = LLM(**SETTINGS | own | {"diffusion_config": {"block_length": 64, "cache": OWN_MODE}})
    assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling
    yield llm
    llm.llm_engine.engine_core.shutdown()


def mixed() -> list[Case]:
    """16 requests of many shapes and every cache mode; some canvases end inside a block."""
    ways: list[dict[str, Any]] = [
        {"algorithm": "low_confidence_static"},
        {"algorithm": "low_confidence_static", "steps": 3},
        {"algorithm": "threshold", "threshold": 0.5},
        {"algorithm": "factor", "factor": 0.8},
    ]
    return [
        Case(
            random_prompt(LENGTHS[i % 4], 40 + i),
            (16, 24, 21, 40)[(i // 2) % 4],
            block_length=(8, 16, 32)[i % 3],
            cache=in_engine(MODES[(i // 3) % 3]),
            **ways[(i // 4 + i) % 4],
        )
        for i in range(16)
    ]


def test_a_canvas_is_read_as_upstream_s_decisions_do(llada: Any) -> None:
    """One step, a part of the canvas, log probabilities of listed ids; the rest of the canvas is seen."""
    from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy

    prompt, listed = list(random_prompt(9, 77)), [20, 30, 40]
    canvas = [reference().mask_id, 106, *[3] * 14]
    read = {"seed_canvas": canvas, "canvas_length": 16, "max_steps": 1, "read_only": True}
    params = [
        SamplingParams(
            max_tokens=2,
            temperature=0,
            logprob_token_ids=listed,
            extra_args=DiffusionParams(**read, **more).to_extra_args(),
        )
        for more in ({}, {"constrained": True})
    ]
    outputs = llada.generate([{"prompt_token_ids": prompt}] * 2, params, use_tqdm=False)
    plain, among = (output.outputs[0] for output in outputs)
    assert [len(one.token_ids) for one in (plain, among)] == [2, 2]
    assert plain.token_ids[1] == among.token_ids[1] == 106
    assert among.token_ids[0] in listed
    ids = prompt + canvas
    want = reference().forward(ids, range(len(ids)), [])[len(prompt)].log_softmax(-1)
    mass = want[listed].logsumexp(0)
    for token in listed:
        assert plain.logprobs[0][token].logprob == pytest.approx(float(want[token]), abs=1e-3)
        assert among.logprobs[0][token].logprob == pytest.approx(float(want[token] - mass), abs=1e-3)


def test_golden_alone(llada: Any) -> None:
    for case in published()[::3]:
        assert run(llada, [of_golden(case)])[0]["token_ids"] == case["output_ids"], case["name"]


def test_golden_batched(llada: Any) -> None:
    check_golden(run(llada, [of_golden(c) for c in published()]))


def check_golden(results: list[dict[str, Any]]) -> None:
    """Ids, and where they are published the order of unmasking and its probabilities."""
    for result, case in zip(results, published(), strict=True):
        assert result["token_ids"] == case["output_ids"], case["name"]
        if "cache" not in case["params"]:
            assert result["unmask_steps"] == case["unmask_step"], case["name"]
            assert result["probabilities"] == pytest.approx(case["unmask_conf"], abs=1e-4)


@cache
def expected(case: Case) -> Decoded:
    """What the reference generates for a request."""
    assert case.block_length
    return reference().generate(
        list(case.prompt),
        case.max_tokens,
        case.block_length,
        case.steps or case.block_length,
        case.algorithm,
        case.threshold if case.factor is None else case.factor,
        case.cache or OWN_MODE,
    )


def test_mixed_batch(llada: Any) -> None:
    check_mixed(run(llada, mixed()))


def test_synchronous() -> None:
    """The same where each step is planned by the output of the one before it."""
    own = {"block_length": 64, "cache": OWN_MODE}
    golden, batch = run_elsewhere(
        [[of_golden(c) for c in published()], mixed()],
        model=str(FOLDER),
        max_model_len=512,
        diffusion_config=own,
        async_scheduling=False,
    )
    check_golden(golden[:-1])
    check_mixed(batch[:-1])


def check_mixed(results: list[dict[str, Any]]) -> None:
    """Ids, order of unmasking and number of steps are the reference's."""
    cases = mixed()
    for result, case in zip(results, cases, strict=True):
        want = expected(case)
        assert result["token_ids"] == want.output_ids, case
        assert result["unmask_steps"] == want.unmask_step, case
        assert result["steps"] == want.denoising_steps, case


def test_an_end_token_ends_nothing_unless_it_is_asked_for(llada: Any) -> None:
    """As in the published loop; a stop id cuts the response behind it."""
    from vllm import SamplingParams

    case = Case(random_prompt(7, 63), 16, "low_confidence_static", 16, steps=4, cache="none")
    eos, ids = reference().config["eos_token_id"], expected(case).output_ids
    assert eos in ids[:-1]
    how = case.sampling_params().extra_args
    params = [
        SamplingParams(temperature=0, max_tokens=16, detokenize=False, stop_token_ids=stops, extra_args=how)
        for stops in ([], [eos])
    ]
    prompt = {"prompt_token_ids": list(case.prompt)}
    outputs = llada.generate([prompt, prompt], params, use_tqdm=False)
    whole, cut = (list(output.outputs[0].token_ids) for output in outputs)
    assert whole == ids
    assert cut == ids[: ids.index(eos) + 1]


def test_a_mask_token_in_the_prompt_is_text(llada: Any) -> None:
    prompt = list(random_prompt(37, 3))
    prompt[5] = prompt[-1] = reference().mask_id
    cases = [
        Case(tuple(prompt), 24, "low_confidence_static", 8, cache=in_engine(mode), steps=3) for mode in MODES
    ]
    for result, case in zip(run(llada, cases), cases, strict=True):
        assert result["token_ids"] == expected(case).output_ids, case
