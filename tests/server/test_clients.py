# SPDX-License-Identifier: Apache-2.0
"""Bodies of real clients, as they send them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import MODEL, Server
from tests.server.known_answers import SOLVED, SUDOKU

MESSAGES = [{"role": "user", "content": SUDOKU}]
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def post(server: Server, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and body of an answer; what a client library would add or leave out stays as it is."""
    request = urllib.request.Request(
        server.url + path,
        json.dumps({"model": MODEL, **body}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.parametrize("logprobs", [0, 1])
def test_trl_generate(server: Server, logprobs: int) -> None:
    """TRL 1.16: ``VLLMClient.generate`` against an OpenAI server; zero log probabilities are not none."""
    status, body = post(
        server,
        "/v1/completions",
        {
            "prompt": SUDOKU,
            "n": 1,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "max_tokens": 32,
            "logprobs": logprobs,
            "return_tokens_as_token_ids": True,
        },
    )
    assert status == 200, body
    choice = body["choices"][0]
    tokens = choice["logprobs"]["tokens"]
    assert tokens and all(token.startswith("token_id:") for token in tokens)
    assert len(choice["logprobs"]["token_logprobs"]) == len(tokens)


def test_rloo_sends_null_for_no_log_probabilities(server: Server) -> None:
    status, body = post(
        server,
        "/v1/completions",
        {"prompt": SUDOKU, "max_tokens": 32, "logprobs": None, "return_tokens_as_token_ids": True},
    )
    assert status == 200, body
    assert body["choices"][0]["logprobs"] is None
    assert body["choices"][0]["text"] == SOLVED


CHAT_FIELDS: dict[str, Any] = {
    "verbosity": "medium",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"ttl": "1h"},
    "store": True,
    "service_tier": "priority",
    "functions": [],
    "function_call": "none",
    "web_search_options": {},
    "safety_identifier": "someone",
    "metadata": {"run": "7"},
    "modalities": ["text"],
}


def test_openai_fields_that_ask_for_nothing(server: Server) -> None:
    body = {"messages": MESSAGES, "max_tokens": 32, **CHAT_FIELDS}
    status, answer = post(server, "/v1/chat/completions", body)
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"] == SOLVED


def test_stream_options_of_the_official_client(server: Server) -> None:
    body = {
        "messages": MESSAGES,
        "max_tokens": 32,
        "stream": True,
        "stream_options": {"include_obfuscation": False},
    }
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps({"model": MODEL, **body}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        assert response.status == 200
        assert b"[DONE]" in response.read()


def test_responses_accept_what_asks_for_nothing(server: Server) -> None:
    fields = {"n": 1, "stream_options": {}, "store": True, "text": {"verbosity": "medium"}, **CHAT_FIELDS}
    del fields["modalities"], fields["functions"], fields["function_call"]
    body = {"input": SUDOKU, "max_output_tokens": 32, **fields}
    status, answer = post(server, "/v1/responses", body)
    assert status == 200, answer
    assert answer["output"][-1]["content"][0]["text"] == SOLVED


@pytest.mark.parametrize(
    ("fields", "named", "value"),
    [
        ({"verbosity": "low"}, "verbosity", "'low'"),
        ({"store": "maybe", "n": 1, "service_tier": "fast"}, "service_tier", "'fast'"),
        ({"functions": [{"name": "f"}]}, "functions", "Use tools"),
        ({"function_call": {"name": "f"}}, "function_call", "Use tool_choice"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options", "'low'"),
        ({"enable_thinking": True}, "enable_thinking", "chat_template_kwargs"),
        ({"thinking": {"type": "enabled"}}, "thinking", "chat_template_kwargs"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "chat_template_kwargs"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "True",
        ),
        ({"top_k": 5, "stop_token_ids": [1, "MASK"]}, "stop_token_ids", "mask token"),
        ({"allowed_token_ids": [50, "MASK"]}, "allowed_token_ids", "mask token"),
        ({"logprobs": True, "logprob_token_ids": ["MASK"]}, "logprob_token_ids", "mask token"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_that_asks_for_something_is_refused_by_name(
    server: Server, fields: dict[str, Any], named: str, value: str
) -> None:
    from vllm.v1.diffusion import bundled_path

    mask = json.loads((Path(bundled_path()) / "config.json").read_text())["mask_token_id"]
    fields = {
        name: [mask if one == "MASK" else one for one in some] if isinstance(some, list) else some
        for name, some in fields.items()
    }
    status, answer = post(server, "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 32, **fields})
    assert status == 400, answer
    assert named in answer["error"]["message"]
    assert value in answer["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "web_search_preview"}]}, "tools"),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "tools"),
        ({"n": 2}, "n="),
        ({"stream_options": {"include_obfuscation": True}, "stream": True}, "stream_options"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_responses_refuse_what_they_would_drop(server: Server, fields: dict[str, Any], named: str) -> None:
    status, answer = post(server, "/v1/responses", {"input": SUDOKU, "max_output_tokens": 32, **fields})
    assert status == 400, answer
    assert named in answer["error"]["message"]


def test_echo_with_logprobs_is_refused_in_its_own_name(server: Server) -> None:
    """lm-eval 0.4.13's body for a multiple-choice task."""
    body = {
        "prompt": [[5, 6, 7]],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    status, answer = post(server, "/v1/completions", body)
    assert status == 400
    assert "echo=True" in answer["error"]["message"]
    assert "prompt_logprobs" not in answer["error"]["message"]
    assert answer["error"]["param"] == "echo"


def test_all_log_probabilities_leave_the_mask_token_out(server: Server) -> None:
    from vllm.v1.diffusion import bundled_path

    config = json.loads((Path(bundled_path()) / "config.json").read_text())
    body = {"prompt": SUDOKU, "max_tokens": 4, "logprobs": 5, "return_tokens_as_token_ids": True}
    status, answer = post(server, "/v1/completions", body)
    assert status == 200, answer
    listed = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    assert f"token_id:{config['mask_token_id']}" not in listed


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "name": "weather"}])
def test_responses_without_a_tool_parser_refuse_tools(choice: Any) -> None:
    """openai-agents, pydantic-ai and langchain: 200 and a tool that was never called."""
    from types import SimpleNamespace

    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.v1.diffusion.frontend.responses import check_response
    from vllm.v1.diffusion.request.fields import ParameterError

    request = ResponsesRequest(input="x", tools=[WEATHER], tool_choice=choice)  # type: ignore[call-arg, list-item]
    without = SimpleNamespace(online_renderer=SimpleNamespace(parser=None, enable_auto_tools=False))
    with pytest.raises(ParameterError, match=r"tool_choice=.*--tool-call-parser"):
        check_response(request, without)
    parser = SimpleNamespace(tool_parser_cls=object)
    check_response(
        request, SimpleNamespace(online_renderer=SimpleNamespace(parser=parser, enable_auto_tools=True))
    )
    check_response(ResponsesRequest(input="x", tools=[WEATHER], tool_choice="none"), without)  # type: ignore[call-arg, list-item]
