# SPDX-License-Identifier: Apache-2.0
"""DreamOn: its published code gave these ids; the engine must give the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.conftest import GOLDEN, SETTINGS

FOLDER = GOLDEN / "dreamon"
EVERY: list[dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text())["cases"]
CASES = [case for case in EVERY if not case["params"]["pad_delete_to_right"]]
"""The others show a mistake of the published code, which deletes the whole hole."""


@pytest.fixture(scope="module")
def dreamon() -> Iterator[Any]:
    """An engine of the folder, with no other word on what it is."""
    from vllm import LLM

    llm = LLM(**SETTINGS | {"model": str(FOLDER), "diffusion_config": None})
    yield llm
    llm.llm_engine.engine_core.shutdown()


def asked(template: list[int], room: int | None, **own: Any) -> Any:
    """A request's parameters."""
    from vllm import DiffusionParams  # type: ignore[attr-defined]  # lazy

    given = DiffusionParams(infill_ids=template, trace=True, **own)
    return given.sampling_params(temperature=0, max_tokens=room, detokenize=False)


def of_golden(case: dict[str, Any]) -> tuple[list[int], Any]:
    """A golden case as prompt and request."""
    given, ids = case["params"], case["prompt_ids"]
    begin, end = given["prefix"], given["prefix"] + given["masks"]
    room = given["max_new_tokens"] + given["suffix"]
    how = {"algorithm": given["alg"], "expand_budget": given["expand_budget"]}
    return ids[:begin], asked([-1] * given["masks"] + ids[end:], room, **how)


def generate(llm: Any, requests: list[tuple[list[int], Any]]) -> list[Any]:
    """Completions of requests in one batch."""
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    return [o.outputs[0] for o in llm.generate(prompts, [how for _, how in requests], use_tqdm=False)]


def check(completion: Any, case: dict[str, Any]) -> None:
    """The whole answer and its forwards are the published ones."""
    assert list(completion.token_ids) == case["full_canvas_ids"][case["params"]["prefix"] :], case["name"]
    assert completion.diffusion.steps == case["num_forward"], case["name"]


def test_alone(dreamon: Any) -> None:
    for case in CASES:
        check(generate(dreamon, [of_golden(case)])[0], case)


def test_batched(dreamon: Any) -> None:
    twice = CASES + CASES[::-1]
    for completion, case in zip(generate(dreamon, [of_golden(c) for c in twice]), twice, strict=True):
        check(completion, case)
