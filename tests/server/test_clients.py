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
from tests.server.posting import post

MESSAGES = [{"role": "user", "content": SUDOKU}]
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def stream(server: Server, path: str, body: dict[str, Any]) -> list[Any]:
    """The chunks of a streamed answer."""
    request = urllib.request.Request(
        server.url + path,
        json.dumps({"model": MODEL, "stream": True, **body}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        lines = response.read().decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


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


def test_editors_send_an_empty_suffix(server: Server) -> None:
    status, body = post(server, "/v1/completions", {"prompt": SUDOKU, "max_tokens": 32, "suffix": ""})
    assert status == 200, body
    assert body["choices"][0]["text"] == SOLVED
    status, body = post(server, "/v1/completions", {"prompt": SUDOKU, "max_tokens": 32, "suffix": "4"})
    assert status == 400 and "suffix" in body["error"]["message"]


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


def test_an_answer_is_accepted_as_it_was_sent(server: Server) -> None:
    """Clients append the message, or the items, that they were sent."""
    _, first = post(server, "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 32})
    said = first["choices"][0]["message"]
    status, answer = post(server, "/v1/chat/completions", {"messages": [*MESSAGES, said, *MESSAGES]})
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"] == SOLVED
    _, first = post(server, "/v1/responses", {"input": SUDOKU, "max_output_tokens": 32})
    status, answer = post(server, "/v1/responses", {"input": [*MESSAGES, *first["output"], *MESSAGES]})
    assert status == 200, answer
    assert answer["output"][-1]["content"][0]["text"] == SOLVED
    _, first = post(server, "/v1/messages", {"messages": MESSAGES, "max_tokens": 32})
    said = {"role": "assistant", "content": first["content"]}
    body = {"messages": [*MESSAGES, said, *MESSAGES], "max_tokens": 32}
    status, answer = post(server, "/v1/messages", body)
    assert status == 200, answer
    assert answer["content"] == [{"type": "text", "text": SOLVED}]


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
    fields |= {"background": None, "truncation": None}  # Status 400 when the answer had been made.
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


# lm-eval 0.4.13's body for a multiple-choice task: texts and continuations as ids, some at a time.
LM_EVAL = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}


def test_lm_eval_s_multiple_choice_is_answered(server: Server) -> None:
    """Its client sums the log probabilities behind the context, and asks which tokens were the likeliest."""
    context = "sudoku 1003/0300/3210/4132="
    status, ids = post(server, "/tokenize", {"prompt": context, "add_special_tokens": False})
    assert status == 200
    choices = ["1423/2341/3214/4132", "1423/2341/3214/4123", "1423/2314/3214/4132"]
    prompts = []
    for choice in choices:
        _, answer = post(server, "/tokenize", {"prompt": choice, "add_special_tokens": False})
        prompts.append(ids["tokens"] + answer["tokens"])
    status, answer = post(server, "/v1/completions", {"prompt": prompts, **LM_EVAL})
    assert status == 200, answer
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    sums = []
    for choice, text, prompt in zip(answer["choices"], choices, prompts, strict=True):
        scores = choice["logprobs"]
        count = len(prompt) + 1
        assert {len(scores[name]) for name in scores} == {count}
        assert choice["text"].startswith(context + text)
        assert (scores["token_logprobs"][0], scores["top_logprobs"][0]) == (None, None)
        assert "".join(scores["tokens"][:-1]) == context + text
        assert scores["text_offset"][:3] == [0, 1, 2]
        for token, value, best in zip(
            scores["tokens"][1:], scores["token_logprobs"][1:], scores["top_logprobs"][1:], strict=True
        ):
            assert value <= 0
            assert best[token] == value  # Beside the likeliest one, where that is another.
            assert len(best) <= 2
        sums.append(sum(scores["token_logprobs"][len(ids["tokens"]) : -1]))
    assert max(sums) == sums[0] > -1
    assert max(sums[1:]) < -3
    used = sum(map(len, prompts))
    assert answer["usage"]["prompt_tokens"] == used
    assert answer["usage"]["completion_tokens"] == len(prompts)


def test_a_continuation_is_scored_alone(server: Server) -> None:
    body = {"prompt": SUDOKU, **LM_EVAL}
    whole, part, none = (
        post(server, "/v1/completions", body | more)[1]["choices"][0]
        for more in (
            {},
            {"vllm_xargs": {"diffusion_score_from": 20, "diffusion_stats": True}},
            {"max_tokens": 0},
        )
    )
    assert part["logprobs"]["token_logprobs"][:20] == [None] * 20
    assert part["logprobs"]["token_logprobs"][20:] == pytest.approx(
        whole["logprobs"]["token_logprobs"][20:], abs=1e-3
    )
    said = part["diffusion"]["likelihood"]
    assert said == {"estimator": "left_to_right", "score_from": 20, "steps": len(SUDOKU) - 20}
    # Without tokens of its own the request gives the prompt back, as upstream.
    assert none["text"] == SUDOKU
    assert none["logprobs"]["token_logprobs"] == pytest.approx(
        whole["logprobs"]["token_logprobs"][:-1], abs=1e-3
    )


def test_a_grammar_s_answer_is_the_same_with_scores(server: Server) -> None:
    body = {"prompt": SUDOKU, "max_tokens": 6, "structured_outputs": {"regex": "[a-c]{4}"}}
    (status, plain), (_, asked) = (
        post(server, "/v1/completions", body | more) for more in ({}, {"prompt_logprobs": 0})
    )
    assert status == 200, plain
    assert asked["choices"][0]["text"] == plain["choices"][0]["text"]
    assert len(asked["choices"][0]["prompt_logprobs"]) == len(SUDOKU)


def test_a_stream_echoes_its_log_probabilities(server: Server) -> None:
    body = {"prompt": SUDOKU, **LM_EVAL, "max_tokens": 8}
    status, whole = post(server, "/v1/completions", body)
    assert status == 200
    chunks = stream(server, "/v1/completions", body)
    values = [v for chunk in chunks for v in chunk["choices"][0]["logprobs"]["token_logprobs"]]
    want = whole["choices"][0]["logprobs"]["token_logprobs"]
    assert values[0] is want[0] is None
    assert values[1:] == pytest.approx(want[1:], abs=1e-3)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]


def test_a_chat_s_prompt_has_log_probabilities(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "add 1+2="}], "max_tokens": 2, "prompt_logprobs": 2}
    status, answer = post(server, "/v1/chat/completions", body)
    assert status == 200, answer
    entries = answer["prompt_logprobs"]
    assert len(entries) == answer["usage"]["prompt_tokens"]
    assert entries[0] is None
    assert all(2 <= len(entry) <= 3 for entry in entries[1:])


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


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [{"type": "refusal", "refusal": "no"}],
        [{"type": "output_text", "text": text, "annotations": []} for text in ("1234", "4321")],
    ],
)
def test_earlier_answers_of_responses_that_would_be_lost_are_refused(parts: list[Any]) -> None:
    """schemathesis: status 500 for the first two, and only the first part read of the third."""
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.v1.diffusion.frontend.responses import check_response
    from vllm.v1.diffusion.request.fields import ParameterError

    answer = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": parts}
    asked = {"role": "user", "content": "sort 3142="}
    with pytest.raises(ParameterError, match=r"input\[1\].content="):
        check_response(ResponsesRequest.model_validate({"input": [asked, answer]}), None)
    answer["content"] = [{"type": "output_text", "text": "1234", "annotations": []}]
    check_response(ResponsesRequest.model_validate({"input": [asked, answer, asked]}), None)
