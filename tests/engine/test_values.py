# SPDX-License-Identifier: Apache-2.0
"""Integers and texts that no engine can take are refused by the place where they stand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.admission import admitted, configured
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.diffusion.frontend.values import check_values
from vllm.v1.diffusion.loops.block import BlockDiffusionLoop
from vllm.v1.diffusion.request.fields import ParameterError


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"stop_token_ids": [1, 2**64]}, "stop_token_ids"),
        ({"allowed_token_ids": [2**64]}, "allowed_token_ids"),
        ({"min_tokens": 2**64, "max_tokens": 2**65}, "max_tokens|min_tokens"),
        ({"top_k": 2**70}, "top_k"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"stop": ["a\ud800"]}, r"stop\[0\]"),
        ({"bad_words": ["\udfff"]}, r"bad_words\[0\]"),
        ({"extra_args": {"diffusion_infill": "\ud800<|hole:2|>"}}, "extra_args.diffusion_infill"),
        ({"extra_args": {"diffusion_infill_ids": [-1, 2**64]}}, "extra_args"),
        ({"extra_args": {"diffusion_infill": "<|hole:" + 5000 * "9" + "|>"}}, "diffusion_infill"),
        ({"logit_bias": {2**64: 1.0}}, "logit_bias"),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_parameters(given: dict[str, Any], place: str) -> None:
    with pytest.raises((ValueError, VLLMValidationError), match=place):
        admitted("sdar", SamplingParams(**given))


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"prompt": "a\ud800b"}, "prompt has half of a surrogate pair"),
        ({"prompt": [1, 2**64]}, r"prompt\[1\] must be an integer of at most 64 bits"),
        ({"prompt": "a", "user": "\udc00"}, "user has half"),
        (
            {"prompt": "a", "structured_outputs": {"choice": ["\ud800"]}},
            r"structured_outputs.choice\[0\] has half",
        ),
        ({"prompt": "a", "structured_outputs": {"regex": "\ud800"}}, "structured_outputs.regex has half"),
        ({"prompt": "a", "metadata": {"k": [1, {"\ud800": 2}]}}, r"metadata.k\[1\] has half"),
        (
            {"prompt": "a", "vllm_xargs": {"diffusion_infill": "\ud800"}},
            "vllm_xargs.diffusion_infill has half",
        ),
    ],
    ids=lambda value: ascii(value)[:50],
)
def test_fields_of_the_server(fields: dict[str, Any], place: str) -> None:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    request = CompletionRequest(model="m", **fields)
    with pytest.raises(ParameterError, match=place) as refused:
        BlockDiffusionLoop().validate_request(request, configured())
    assert str(refused.value).isascii()


def test_a_chat_s_text_is_found_wherever_it_stands() -> None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    content = [{"type": "text", "text": "hi \ud800"}]
    request = ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": content}]})
    with pytest.raises(ParameterError, match=r"messages\[0\].content\[0\].text has half"):
        BlockDiffusionLoop().validate_request(request, configured())


def test_what_an_engine_can_take() -> None:
    check_values({"a": [1, -(2**63), 2**63 - 1, True, None, 1e300], "ä": "漢字 👩‍👩‍👧 \x00"}, "")
