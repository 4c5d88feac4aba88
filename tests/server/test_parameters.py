# SPDX-License-Identifier: Apache-2.0
"""What a request may ask of the server: it has an effect, or status 400 and its name."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.server.known_answers import SOLVED, chat, complete


def diffusion(**parameters: Any) -> dict[str, Any]:
    return {"vllm_xargs": {f"diffusion_{name}": value for name, value in parameters.items()}}


@pytest.fixture
def steps_of(client: Any, server: Any) -> Any:
    """Runs the Sudoku; how many denoising steps it took."""

    def run(**parameters: Any) -> int:
        name = "vllm:diffusion_num_denoising_steps_total"
        before = server.metrics()[name]
        assert complete(client, **parameters).choices[0].text == SOLVED
        server.wait_for(lambda m: m["vllm:num_requests_running"] == 0)
        return int(server.metrics()[name] - before)

    return run


def test_decoding_parameters_have_an_effect(steps_of: Any) -> None:
    assert steps_of(**diffusion(algorithm="low_confidence_static", steps=1)) == 2
    # 5 masks are left in the first block, 16 stand in the second; one is unmasked a step.
    assert steps_of(**diffusion(algorithm="low_confidence_static", steps=16)) == 5 + 16
    assert steps_of(**diffusion(algorithm="sequential", steps=4)) == 2 + 4
    assert steps_of(**diffusion(algorithm="low_confidence_dynamic", threshold=1.0)) > 2
    assert steps_of(**diffusion(algorithm="entropy_bounded", entropy_bound=1000.0)) == 2


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        (diffusion(steps=0), "diffusion_steps"),
        (diffusion(steps="many"), "diffusion_steps"),
        (diffusion(steps=1.5), "diffusion_steps"),
        (diffusion(threshold=2), "diffusion_threshold"),
        (diffusion(block_length=5), "diffusion_block_length"),
        (diffusion(block_length=32), "diffusion_block_length"),
        (diffusion(algorithm="guess"), "diffusion_algorithm"),
        (diffusion(algorithm=""), "diffusion_algorithm"),
        (diffusion(infill="a<|hole:4|>") | {"min_tokens": 6}, "min_tokens"),
        (diffusion(infill="a<|hole:4|>") | {"prompt": "a" * 2046}, "the template"),
        ({"min_tokens": 1, "stop_token_ids": [i for i in range(128) if i != 2]}, "min_tokens"),
        (diffusion(entropy_bound=1), "diffusion_entropy_bound"),
        (diffusion(algorithm="sequential", threshold=0.5), "diffusion_threshold"),
        (diffusion(stepz=3), "diffusion_stepz"),
        ({"vllm_xargs": {"anything": 1}}, "anything"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        (diffusion(likelihood="one_step"), "diffusion_likelihood"),
        (diffusion(score_from=1), "diffusion_score_from"),
        (diffusion(likelihood="exact") | {"prompt_logprobs": 1}, "diffusion_likelihood"),
        (diffusion(score_from=-1) | {"prompt_logprobs": 1}, "diffusion_score_from"),
        (diffusion(score_from=99) | {"prompt": "a", "prompt_logprobs": 1}, "diffusion_score_from"),
        ({"structured_outputs": {"regex": "[0-9"}}, "regex"),
        ({"structured_outputs": {"grammar": "root = nothing"}}, "grammar"),
        ({"structured_outputs": {"choice": []}}, "hoice"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"watermarking": True}, "watermarking"),
        ({"routed_experts_prompt_start": 3}, "routed_experts_prompt_start"),
        ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
        ({"ec_transfer_params": {"a": 1}}, "ec_transfer_params"),
        ({"use_beam_search": True, "n": 2}, "use_beam_search"),
        ({"allowed_token_ids": [49, 50], "bad_words": ["1", "2"]}, "allowed_token_ids"),
        ({"suffix": "x"}, "suffix"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"n": 2}, "n must be 1"),
    ],
    ids=str,
)
def test_refused_by_name(client: Any, parameters: Any, named: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=named):
        complete(client, **parameters)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"extra_body": {"bad_words": ["a"]}, "response_format": {"type": "json_object"}}, "bad_words"),
        ({"extra_body": diffusion(steps=0)}, "diffusion_steps"),
    ],
    ids=str,
)
def test_chat_refuses_by_name(client: Any, parameters: Any, named: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=named):
        chat(client, **parameters)


def test_what_asks_for_nothing_is_no_error(client: Any) -> None:
    neutral: dict[str, Any] = {
        "logit_bias": {},
        "bad_words": [],
        "min_p": 0,
        "presence_penalty": 0,
        "repetition_penalty": 1,
        "watermarking": False,
        "response_format": {"type": "text"},
        "vllm_xargs": {},
    }
    assert complete(client, **neutral).choices[0].text == SOLVED


def test_the_server_goes_on_after_refusals(client: Any) -> None:
    """Last in this file: everything above has been refused."""
    assert complete(client).choices[0].text == SOLVED
    assert chat(client).choices[0].message.content == SOLVED
