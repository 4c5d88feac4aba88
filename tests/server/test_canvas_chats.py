# SPDX-License-Identifier: Apache-2.0
"""Chats with the bundled bidirectional model: lengths, tools, a reasoning parser, stop strings."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.conftest import Server, client_of, serving
from tests.server.known_answers import SOLVED, chat, complete
from vllm.v1.diffusion.demo.puzzles import TASKS, make_puzzle

END = 1
"""Id of the end token; those of letters are their codes."""
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "Rome"}}\n</tool_call>'


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from vllm.v1.diffusion import bundled_path

    parsers = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3")
    with serving(bundled_path("llada"), tmp_path_factory.mktemp("llada") / "log", *parsers) as server:
        yield server


@pytest.fixture(scope="module")
def llada(running: Server) -> openai.OpenAI:
    return client_of(running)


def said(client: Any, stream: bool, **more: Any) -> dict[str, Any]:
    """A chat's answer, whole or put together from its stream."""
    if not stream:
        choice = chat(client, **more).choices[0]
        calls = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or ()]
        reasoning = getattr(choice.message, "reasoning", None) or ""
        content = choice.message.content or ""
        return {"reasoning": reasoning, "content": content, "calls": calls, "end": choice.finish_reason}
    parts: dict[str, Any] = {"reasoning": "", "content": "", "calls": [], "end": None}
    for chunk in chat(client, stream=True, **more):
        for choice in chunk.choices:
            parts["reasoning"] += getattr(choice.delta, "reasoning", None) or ""
            parts["content"] += choice.delta.content or ""
            for call in choice.delta.tool_calls or ():
                if call.function.name:
                    parts["calls"].append((call.function.name, ""))
                name, arguments = parts["calls"][call.index]
                parts["calls"][call.index] = (name, arguments + (call.function.arguments or ""))
            parts["end"] = choice.finish_reason or parts["end"]
    return parts


def answer(text: str, ends: int, block: int = 8) -> dict[str, Any]:
    """Has the model say something: a template with a hole behind it, for one more end token."""
    ids = [*map(ord, text), *[END] * ends, -1]
    asked = {"diffusion_infill_ids": ids, "diffusion_block_length": block}
    return {"max_tokens": len(ids), "extra_body": {"vllm_xargs": asked, "allowed_token_ids": [END]}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tools", [{}, {"tools": TOOLS}], ids=["plain", "tools"])
def test_no_end_token_is_text(llada: Any, tools: Any, stream: bool) -> None:
    """Tools and reasoning parsers ask for the text of special tokens; those that end are none."""
    parts = said(llada, stream, **tools, max_tokens=64)
    assert parts["reasoning"] + parts["content"] == SOLVED
    parts = said(llada, stream, **tools, **answer("<think>hm</think>so", 12))
    assert (parts["reasoning"], parts["content"]) == ("hm", "so")


@pytest.mark.parametrize("block", [4, 32])
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_ends_for_tools_whole_and_streamed(llada: Any, stream: bool, block: int) -> None:
    parts = said(llada, stream, tools=TOOLS, **answer(f"<think>hm</think>{CALL}", 9, block))
    assert (parts["reasoning"], parts["content"].strip(), parts["end"]) == ("hm", "", "tool_calls")
    ((name, arguments),) = parts["calls"]
    assert (name, json.loads(arguments)) == ("weather", {"town": "Rome"})
    cut = said(llada, stream, tools=TOOLS, **answer(f"<think>hm</think>{CALL}"[:-22], 0, block))
    assert cut["end"] == "length"


@pytest.mark.parametrize("block", [4, 16])
@pytest.mark.parametrize("stop", [["User:"], ["</tool_call"], ["Rome"], ["zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"]])
def test_stop_strings_beside_parsers(llada: Any, stop: list[str], block: int) -> None:
    """Text that is held back for a stop string reaches the parsers with its ids."""
    more = answer(f"<think>hm</think>Well. {CALL}\nUser: no", 3, block) | {"tools": TOOLS, "stop": stop}
    whole, streamed = (said(llada, stream, **more) for stream in (False, True))
    assert "<tool_ca" not in streamed["content"]
    for name in ("reasoning", "end"):
        assert streamed[name] == whole[name], name
    if stop == ["Rome"]:  # It cuts the call: a stream has begun it by then, and the whole answer has none.
        assert whole["end"] == "stop" and not whole["calls"]
        return
    assert [(n, json.loads(a)) for n, a in streamed["calls"]] == [("weather", {"town": "Rome"})]
    assert whole["calls"] and streamed["content"].strip() == whole["content"].strip()


@pytest.mark.parametrize(
    "length", [{}, {"max_tokens": 128}, {"max_tokens": 256}, {"max_completion_tokens": 700}]
)
def test_right_at_any_length(llada: Any, length: dict[str, int]) -> None:
    """The lengths that clients send, and none: trained on 64 tokens, the model writes canvases of 64."""
    rng = random.Random(4)
    puzzles = [make_puzzle(task, rng) for task in TASKS for _ in range(3)]
    right = 0
    for puzzle in puzzles:
        more = {"max_tokens": openai.omit} | length
        choice = chat(
            llada, puzzle.prompt, temperature=0, extra_body={"include_reasoning": True}, **more
        ).choices[0]
        text = (getattr(choice.message, "reasoning", None) or "") + (choice.message.content or "")
        right += puzzle.is_right(text)
    assert right >= len(puzzles) - 1


def test_an_end_token_ends_the_answer_with_its_canvas(llada: Any) -> None:
    """Unless it is ignored: then further canvases follow up to ``max_tokens``."""
    choice = complete(llada, max_tokens=256).choices[0]
    assert (choice.text, choice.finish_reason) == (SOLVED, "stop")
    report = complete(llada, max_tokens=150, ignore_eos=True, return_token_ids=True).choices[0]
    assert report.finish_reason == "length" and len(report.token_ids) == 150
