# SPDX-License-Identifier: Apache-2.0
"""``docs/compatibility.md`` against the running server: what it calls refused is, in these words."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.server.conftest import MODEL
from tests.server.known_answers import SOLVED, SUDOKU
from tools.compatibility import Row, request_rows, shown
from tools.compatibility_fields import KINDS
from vllm.v1.diffusion.frontend.http_fields import ASKS_NOTHING, LABELS, RULES, check_request
from vllm.v1.diffusion.request.fields import ParameterError


@pytest.fixture(scope="module")
def ask(client: Any) -> Any:
    def send(kind: str, fields: dict[str, Any]) -> str:
        text: str
        body = {"max_tokens": 32, "extra_body": fields, "model": MODEL}
        if kind == "completions":
            text = client.completions.create(prompt=SUDOKU, **body).choices[0].text
            return text
        if kind == "responses":
            response = client.responses.create(
                input=SUDOKU, model=MODEL, max_output_tokens=32, extra_body=fields
            )
            text = response.output_text
            return text
        messages = [{"role": "user", "content": SUDOKU}]
        text = client.chat.completions.create(messages=messages, **body).choices[0].message.content
        return text

    return send


@pytest.mark.parametrize("kind", KINDS)
def test_every_refused_field_is_refused_in_these_words(ask: Any, kind: Any) -> None:
    rows: list[Row] = [row for row in request_rows(kind) if row.message]
    assert len(rows) > 5
    wrong: list[tuple[str, str | None, str]] = []
    for row in rows:
        try:
            ask(kind, row.entry.example)
        except openai.BadRequestError as error:
            body = error.body
            reported = shown(body["message"] if isinstance(body, dict) else str(body))
            assert row.message is not None
            if not reported.startswith(row.message):
                wrong.append((row.field, row.message, reported))
        else:
            wrong.append((row.field, row.message, "accepted"))
    assert not wrong


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_an_example_and_no_refusal_is_accepted(ask: Any, kind: Any) -> None:
    for row in request_rows(kind):
        if row.entry.example is not None and row.message is None:
            ask(kind, row.entry.example)


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_ask_for_nothing_are_accepted(ask: Any, kind: Any) -> None:
    streams = ("stream_options", "stream_options.include_obfuscation")  # refused upstream without stream
    given = {name: values[-1] for name, values in ASKS_NOTHING.items() if name not in streams}
    given |= {name: rule.neutral[-1] for name, rule in RULES.items() if name not in ("media_io_kwargs",)}
    given = {k: v for k, v in given.items() if k in KINDS[kind][3] or k not in RULES}
    labels = {name: "x" for name in (*LABELS, "user", "session_id") if name not in ("metadata", "store")}
    assert ask(kind, {**given, **labels, "metadata": {"run": "7"}, "request_id": "abc"}) == SOLVED


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "named", "hint"),
    [
        ({"diffusion_steps": 4}, "diffusion_steps", "members of vllm_xargs"),
        ({"guided_regex": "a"}, "guided_regex", "structured_outputs"),
        ({"temprature": 1}, "temprature", ""),
    ],
)
def test_an_unknown_field_is_refused(ask: Any, kind: Any, fields: Any, named: Any, hint: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(kind, fields)
    body: Any = refused.value.body
    assert body["param"] == named
    assert shown(body["message"]).startswith(f"{named} is no field that this server knows.")
    assert hint in body["message"]


@pytest.mark.parametrize("kind", ["completions", "chat completions"])
def test_an_unknown_option_of_a_stream_is_refused(ask: Any, kind: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"stream_options\.x is no field that this server knows"):
        ask(kind, {"stream_options": {"x": 1}, "stream": True})


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_asks_for_something_is_refused_with_what_is_allowed(ask: Any, kind: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="best_of=2 is not supported: only 1 asks"):
        ask(kind, {"best_of": 2})


@pytest.mark.parametrize("name", ["diffusion_stats", "diffusion_trace"])
def test_a_response_of_token_ids_has_no_room_for_a_report(name: str) -> None:
    """``/inference/v1/generate``, which takes its parameters as they are."""
    from vllm.entrypoints.scale_out.token_in_token_out.protocol import GenerateRequest

    config: Any = None
    body: dict[str, Any] = {"token_ids": [5], "sampling_params": {"extra_args": {"diffusion_steps": 1}}}
    request: Any = GenerateRequest(**body)
    check_request(request, config)
    body["sampling_params"]["extra_args"][name] = True
    request = GenerateRequest(**body)
    with pytest.raises(ParameterError, match=f"{name} has an effect on completions and chat"):
        check_request(request, config)
