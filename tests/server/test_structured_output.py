"""Grammars over HTTP: response formats, choices, forced tools; whole and streamed."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import openai
import pytest

from tests.server.known_answers import chat, complete

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "town": {"enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["town", "days"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}},
    {"type": "function", "function": {"name": "tides", "parameters": SCHEMA, "strict": True}},
]
TIDES = {"type": "function", "function": {"name": "tides"}}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA, "strict": True}}
SUDOKU = "[1-4]{4}(/[1-4]{4}){3}"


def test_a_grammar_that_agrees_changes_nothing(client: Any) -> None:
    plain = complete(client).choices[0]
    held = complete(client, structured_outputs={"regex": SUDOKU}).choices[0]
    assert (held.text, held.finish_reason) == (plain.text, plain.finish_reason)


@pytest.mark.parametrize("temperature", [0, 1.2])
def test_completions(client: Any, temperature: float | int) -> None:
    def text(**constraint: Any) -> str:
        choice = complete(
            client, max_tokens=200, temperature=temperature, structured_outputs=constraint
        ).choices[0]
        assert choice.finish_reason == "stop"
        said: str = choice.text
        return said

    assert text(choice=["yes", "no"]) in ("yes", "no")
    assert re.fullmatch("[a-z]{3}(-[a-z]{3}){2}", text(regex="[a-z]{3}(-[a-z]{3}){2}"))
    assert re.fullmatch(r"\[\d(,\d)*\]", text(grammar='root ::= "[" [0-9] ("," [0-9]){0,9} "]"'))


def test_too_short_says_so(client: Any) -> None:
    choice = complete(client, max_tokens=7, structured_outputs={"regex": "[a-z]{20}"}).choices[0]
    assert choice.finish_reason == "length" and re.fullmatch("[a-z]{7}", choice.text)


def test_chat_response_format(client: Any) -> None:
    answer = chat(client, response_format=JSON_SCHEMA, max_tokens=400)
    jsonschema.validate(json.loads(answer.choices[0].message.content), SCHEMA)
    chunks = [
        chunk.choices[0].delta.content or ""
        for chunk in chat(client, response_format=JSON_SCHEMA, max_tokens=400, stream=True)
        if chunk.choices
    ]
    assert len([c for c in chunks if c]) > 1  # A block each.
    assert "".join(chunks) == answer.choices[0].message.content


@pytest.mark.parametrize("tool_choice", ["required", TIDES], ids=["required", "named"])
def test_forced_tools(client: Any, tool_choice: Any) -> None:
    request = {"tools": TOOLS, "tool_choice": tool_choice, "max_tokens": 600}
    (call, *_) = calls = chat(client, **request).choices[0].message.tool_calls
    for each in calls:
        assert each.function.name in ("weather", "tides")
        jsonschema.validate(json.loads(each.function.arguments), SCHEMA)
    if tool_choice != "required":
        assert call.function.name == "tides"
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for chunk in chat(client, stream=True, **request):
        for delta in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
            names[delta.index] = names.get(delta.index) or delta.function.name
            arguments[delta.index] = arguments.get(delta.index, "") + (delta.function.arguments or "")
    assert [names[i] for i in sorted(names)] == [each.function.name for each in calls]
    assert [json.loads(arguments[i]) for i in sorted(arguments)] == [
        json.loads(each.function.arguments) for each in calls
    ]


@pytest.mark.parametrize("strict", [None, False])
def test_forced_tools_that_are_not_strict(client: Any, strict: bool | None) -> None:
    """The defaults of instructor and langchain: the arguments are an object that the schema admits."""
    tools = [{"type": "function", "function": {**tool["function"], "strict": strict}} for tool in TOOLS]
    for choice in ("required", TIDES):
        answer = chat(client, tools=tools, tool_choice=choice, max_tokens=600)
        calls = answer.choices[0].message.tool_calls
        assert calls
        for call in calls:
            jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"grammar": "root ::= [\n]"}, "Invalid grammar specification"),
        (
            {"json": {"type": "array", "items": {"type": "integer", "multipleOf": 3}}},
            "not supported by xgrammar",
        ),
    ],
)
def test_what_xgrammar_does_not_support_is_refused(client: Any, asked: dict[str, Any], reason: str) -> None:
    """Whatever an engine's first grammar was."""
    message = f"structured_outputs cannot be compiled(?s:.)*{reason}"
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        chat(client, extra_body={"structured_outputs": asked}, max_tokens=9)
    assert '{"backend": "guidance"}' in str(refused.value)


@pytest.mark.parametrize("asked", [{"choice": ["é"]}, {"regex": "ab{20}é"}])
def test_a_grammar_that_the_vocabulary_cannot_write(client: Any, asked: dict[str, Any]) -> None:
    """Its tokens are ASCII. The request ends with the reason."""
    with pytest.raises(openai.InternalServerError, match="structured_outputs: the grammar cannot be written"):
        chat(client, extra_body={"structured_outputs": asked}, max_tokens=64)
