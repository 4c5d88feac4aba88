# SPDX-License-Identifier: Apache-2.0
"""WeDLM: its decoder and sampler gave these ids; the engine must give the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.conftest import GOLDEN, SETTINGS

FOLDER = GOLDEN / "wedlm"
CASES: list[dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text())["cases"]


@pytest.fixture(scope="module")
def wedlm() -> Iterator[Any]:
    """An engine whose windows may have 32 positions, with prompts in chunks and cached prefixes."""
    from vllm import LLM

    own = {"diffusion_config": {"block_length": 32}, "max_num_batched_tokens": 96}
    llm = LLM(**SETTINGS | {"model": str(FOLDER), "enable_prefix_caching": True} | own)
    yield llm
    llm.llm_engine.engine_core.shutdown()


def asked(max_tokens: int, stop: list[int] | None = None, temperature: float = 0.0, **own: Any) -> Any:
    """A request's parameters; those of diffusion without their prefix."""
    from vllm import DiffusionParams  # type: ignore[attr-defined]  # lazy

    params = {"max_tokens": max_tokens, "stop_token_ids": stop or [], "temperature": temperature}
    return DiffusionParams(trace=True, **own).sampling_params(ignore_eos=True, detokenize=False, **params)


def of_golden(case: dict[str, Any]) -> Any:
    """A golden case as a request; its parameters are the published code's."""
    given = case["params"]
    return asked(
        given["max_tokens"],
        given["stop_token_ids"],
        block_length=given["window"],
        entropy_threshold=given["entropy_threshold"] or 0.0,
        position_penalty=given["pos_penalty_factor"],
    )


def generate(llm: Any, requests: list[tuple[list[int], Any]]) -> list[Any]:
    """Completions of requests in one batch."""
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    return [o.outputs[0] for o in llm.generate(prompts, [how for _, how in requests], use_tqdm=False)]


def check(completion: Any, case: dict[str, Any]) -> None:
    """Ids, and the forward that unmasked each, are the published ones, whose last forward writes nothing."""
    assert list(completion.token_ids) == case["output_ids"], case["name"]
    assert [step for step, _ in completion.diffusion.trace] == case["unmask_step"], case["name"]
    assert completion.diffusion.steps == case["num_forward"] - 1, case["name"]


def test_alone(wedlm: Any) -> None:
    for case in CASES:
        check(generate(wedlm, [(case["prompt_ids"], of_golden(case))])[0], case)


def test_batched(wedlm: Any) -> None:
    twice = CASES + CASES[::-1]
    completions = generate(wedlm, [(case["prompt_ids"], of_golden(case)) for case in twice])
    for completion, case in zip(completions, twice, strict=True):
        check(completion, case)
