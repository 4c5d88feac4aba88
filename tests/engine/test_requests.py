# SPDX-License-Identifier: Apache-2.0
"""What a request may ask for: checked at admission, and nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.cases import Case, assert_as_reference, random_prompt, run
from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import BeamSearchParams

PROMPT = [{"prompt_token_ids": list(random_prompt(9, 12))}]


@pytest.mark.parametrize(
    ("extra_args", "named"),
    [
        ({"diffusion_steps": 0}, "diffusion_steps"),
        ({"diffusion_steps": "many"}, "diffusion_steps"),
        ({"diffusion_steps": True}, "diffusion_steps"),
        ({"diffusion_block_length": 3}, "diffusion_block_length"),
        ({"diffusion_block_length": 32}, "diffusion_block_length"),
        ({"diffusion_threshold": 1.5}, "diffusion_threshold"),
        ({"diffusion_threshold": float("nan")}, "diffusion_threshold"),
        ({"diffusion_algorithm": "guess"}, "diffusion_algorithm"),
        ({"diffusion_algorithm": 3}, "diffusion_algorithm"),
        ({"diffusion_algorithm": "sequential", "diffusion_threshold": 0.5}, "diffusion_threshold"),
        ({"diffusion_entropy_bound": 0.5}, "diffusion_entropy_bound"),
        ({"diffusion_factor": 1.0}, "diffusion_factor"),
        ({"diffusion_trace": 2}, "diffusion_trace"),
        ({"anything": 1}, "anything"),
    ],
)  # fmt: skip
def test_bad_diffusion_parameter(engine: Any, extra_args: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        engine.generate(PROMPT, SamplingParams(extra_args=extra_args), use_tqdm=False)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"prompt_logprob_token_ids": [[1, 2]]}, "prompt_logprob_token_ids"),
        ({"seed": 2**63}, "seed"),
        ({"logit_bias": {508: 1.0}}, "logit_bias"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias"),
        ({"logit_bias": {i: -float("inf") for i in range(512) if i != 508}}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(range(512), 0.0), "allowed_token_ids": list(range(512)) * 3}, "1024"),
        ({"allowed_token_ids": [508]}, "allowed_token_ids"),
        ({"allowed_token_ids": [4, 508], "logit_bias": {4: -float("inf")}}, "allowed_token_ids"),
        ({"allowed_token_ids": [4], "min_tokens": 1, "stop_token_ids": [4]}, "allowed_token_ids"),
        ({"min_tokens": 1, "stop_token_ids": list(range(129))}, "stop_token_ids"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_sampling_parameters_that_cannot_be_met(engine: Any, params: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        engine.generate(PROMPT, SamplingParams(**params), use_tqdm=False)


def test_beam_search_is_refused_and_what_it_asks_for_is_not(engine: Any) -> None:
    beams = BeamSearchParams(beam_width=2, max_tokens=3)
    with pytest.raises(ValueError, match="use_beam_search"):
        engine.beam_search(PROMPT, beams)
    alike = SamplingParams(logprobs=4, max_tokens=1, temperature=0, watermarking=False, detokenize=False)
    (output,) = engine.generate(PROMPT, alike, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 1 and len(output.outputs[0].logprobs[0]) >= 4


def test_the_engine_goes_on_after_refusals(engine: Any) -> None:
    case = Case(random_prompt(7, 13), 9, "low_confidence_static", 4)
    assert_as_reference(run(engine, [case]), [case])


def test_the_alphabet_of_params() -> None:
    params = DiffusionParams(algorithm="sequential", steps=2)
    assert params.to_extra_args() == {
        "diffusion_algorithm": "sequential",
        "diffusion_steps": 2,
    }
    assert DiffusionParams.from_extra_args(params.to_extra_args()) == params


def test_abort_in_the_middle(engine: Any) -> None:
    """An aborted request leaves nothing behind and disturbs nobody."""
    core = engine.llm_engine
    keep = Case(random_prompt(40, 14), 40, "low_confidence_static", 8)
    drop = Case(random_prompt(50, 15), 400, "sequential", 4)
    ids = {}
    for name, case in (("keep", keep), ("drop", drop)):
        ids[name] = core.add_request(name, {"prompt_token_ids": list(case.prompt)}, case.sampling_params())
    seen: dict[str, Any] = {}
    while core.has_unfinished_requests():
        for output in core.step():
            seen[output.request_id] = output
        if "drop" in seen and "aborted" not in seen:
            seen["aborted"] = True
            core.abort_request(["drop"])
    completion = seen["keep"].outputs[0]
    result = {
        "token_ids": list(completion.token_ids),
        "unmask_steps": [s for s, _ in completion.diffusion.trace],
        "steps": completion.diffusion.steps,
    }
    assert_as_reference([result], [keep])


def test_one_token_and_the_whole_context(engine: Any) -> None:
    cases = [
        Case(random_prompt(33, 16), 1, "low_confidence_static", 16),
        Case(random_prompt(1000, 17), 24, "low_confidence_dynamic", 16, threshold=0.0),
    ]
    results = run(engine, cases)
    assert [len(r["token_ids"]) for r in results] == [1, 24]
    assert_as_reference(results[:1], cases[:1])


def test_a_prompt_that_is_too_long(engine: Any) -> None:
    with pytest.raises(VLLMValidationError, match="1024"):
        engine.generate(
            [{"prompt_token_ids": list(random_prompt(1025, 18))}],
            SamplingParams(max_tokens=1),
            use_tqdm=False,
        )
