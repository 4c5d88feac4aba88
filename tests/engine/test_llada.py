# SPDX-License-Identifier: Apache-2.0
"""LLaDA: published ids and the plain reference, with each cache mode."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from tests.engine.conftest import GOLDEN, run_elsewhere
from tests.engine.requests_ import Case, random_prompt
from tests.reference.bidirectional import LladaReference

FOLDER = GOLDEN / "llada"
LENGTHS = (1, 7, 33, 130)


@cache
def reference() -> LladaReference:
    """The golden checkpoint in the plain reference."""
    return LladaReference(FOLDER)


def golden(mode: str) -> list[dict[str, Any]]:
    """The published cases of a cache mode."""
    cases = json.loads((FOLDER / "cases_fastdllm.json").read_text())["cases"]
    if mode == "none":
        cases += json.loads((FOLDER / "cases.json").read_text())["cases"]
    return [
        case
        for case in cases
        if case["params"].get("cache", "none") == mode
        # Renormalising without end-of-text tokens is not offered.
        and not case["params"].get("confidence_eos_eot_inf")
    ]


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
        **how,
    )


def mixed() -> list[Case]:
    """16 requests of many shapes; some canvases end inside a block."""
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
            **ways[(i // 4 + i) % 4],
        )
        for i in range(16)
    ]


@pytest.mark.parametrize("mode", ["none", "prefix", "dual"])
def test_cache_mode(mode: str) -> None:
    published, cases = golden(mode), mixed()
    assert published
    requests = [of_golden(case) for case in published]
    first, together, second = run_elsewhere(
        [requests[:1], requests, cases],
        model=str(FOLDER),
        diffusion_config={"block_length": 64, "cache": mode},
        # As large as the context: batches do not fit, requests have to wait.
        max_model_len=512,
        max_num_batched_tokens=512,
    )
    for result, case in zip([*first[:-1], *together[:-1]], [published[0], *published], strict=True):
        assert result["token_ids"] == case["output_ids"], case["name"]
    for result, case in zip(second[:-1], cases, strict=True):
        want = reference().generate(
            list(case.prompt),
            case.max_tokens,
            case.block_length,
            case.steps or case.block_length,
            case.algorithm,
            case.threshold if case.factor is None else case.factor,
            mode,
        )
        assert result["token_ids"] == want.output_ids, case
        assert result["unmask_steps"] == want.unmask_step, case
        assert result["steps"] == want.denoising_steps, case
