# SPDX-License-Identifier: Apache-2.0
"""``diffusion_stream``: open blocks in a response's stream, beside chunks that stay as they are."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

import pytest

from tests.server.conftest import MODEL
from tests.server.known_answers import FIRST_BLOCK, SOLVED, SUDOKU, chat, complete

HOW = {"diffusion_algorithm": "low_confidence_static", "diffusion_steps": 4}
ASKED = {**HOW, "diffusion_stream": "steps"}
CHAT = {"messages": [{"role": "user", "content": SUDOKU}]}
BODIES: dict[str, dict[str, Any]] = {
    "completion": {"prompt": SUDOKU},
    "several": {"prompt": [SUDOKU, "sort 83142="], "n": 2, "temperature": 1.0, "seed": 5},
    "with everything": {
        "prompt": SUDOKU,
        "logprobs": 1,
        "echo": True,
        "return_token_ids": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "stop string": {"prompt": SUDOKU, "stop": SOLVED[2:4]},
    "chat": CHAT,
    "chat with everything": {
        **CHAT,
        "logprobs": True,
        "top_logprobs": 2,
        "return_token_ids": True,
        "stream_options": {"include_usage": True},
    },
}


def events(server: Any, body: dict[str, Any], xargs: dict[str, Any]) -> list[str]:
    """A response's events as they come, without what no two responses have in common."""
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    sent = {"model": MODEL, "max_tokens": 32, "temperature": 0, "stream": True, **body, "vllm_xargs": xargs}
    request = urllib.request.Request(
        server.url + path,
        data=json.dumps(sent).encode(),
        headers={"Content-Type": "application/json", "X-Request-Id": "same"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        read = response.read().decode().split("\n\n")
    assert read.pop() == ""
    # When they were made differs, and how JSON is spaced says who made a chunk.
    return [re.sub(r'("created": ?)\d+', r"\g<1>0", event) for event in read]


def choice_of(event: str) -> dict[str, Any]:
    """The only choice of an event's chunk; empty for none."""
    return dict(*json.loads(event.removeprefix("data: "))["choices"])


def canvas_of(event: str) -> dict[str, Any] | None:
    """The canvas of an event; None for an ordinary one."""
    if event == "data: [DONE]":
        return None
    said: dict[str, Any] = choice_of(event).get("diffusion", {})
    return said.get("canvas")


@pytest.mark.parametrize("name", BODIES)
def test_ordinary_chunks_stay_byte_for_byte(server: Any, name: str) -> None:
    plain = events(server, BODIES[name], HOW)
    watched = events(server, BODIES[name], ASKED)
    ordinary = [event for event in watched if canvas_of(event) is None]
    if name == "several":
        # Which of four choices comes first is not said.
        assert sorted(ordinary) == sorted(plain)
    else:
        assert ordinary == plain
    assert len(watched) > len(plain)
    assert not any("canvas" in event for event in plain)


@pytest.mark.parametrize("body", [BODIES["completion"], BODIES["chat"]], ids=["completion", "chat"])
def test_every_step_has_its_canvas(server: Any, body: dict[str, Any]) -> None:
    seen = events(server, body, {**ASKED, "diffusion_trace": True, "diffusion_stats": True})
    canvases = [canvas for event in seen if (canvas := canvas_of(event))]
    said = [found for event in seen[:-1] if "trace" in (found := choice_of(event).get("diffusion", {}))]
    trace = [step for part in said for step, _ in part["trace"]]
    assert [canvas["step"] for canvas in canvases] == list(range(said[-1]["steps"]))
    last: dict[int, str] = {}
    unmasked: dict[int, int] = {}
    for canvas in canvases:
        length = len(canvas["pieces"])
        assert length == len(canvas["token_ids"]) == len(canvas["confidence"])
        for i in range(length):
            if i not in canvas["open"]:
                unmasked.setdefault(canvas["begin"] + i, canvas["step"])
                last[canvas["begin"] + i] = canvas["pieces"][i]
        assert canvas["text"].count("░") == len(canvas["open"])
        assert [canvas["token_ids"][i] for i in canvas["open"]] == [-1] * len(canvas["open"])
    assert "".join(last[i] for i in range(len(SOLVED))) == SOLVED
    assert [unmasked[i] for i in range(len(trace))] == trace
    if body is BODIES["completion"]:
        # A block's last canvas comes before its chunk, and the next block's first one after it.
        begins = [canvas and canvas["begin"] for canvas in map(canvas_of, seen)]
        assert begins == [0, 0, None, *[len(FIRST_BLOCK)] * 4, None, None]


def test_whose_canvas_it_is(server: Any) -> None:
    seen = events(server, BODIES["several"], ASKED)
    texts: dict[int, str] = dict.fromkeys(range(4), "")
    canvases: dict[int, dict[int, str]] = {i: {} for i in range(4)}
    for event in seen[:-1]:
        choice = choice_of(event)
        if canvas := canvas_of(event):
            for i, piece in enumerate(canvas["pieces"]):
                canvases[choice["index"]][canvas["begin"] + i] = piece
        else:
            texts[choice["index"]] += choice["text"]
    for index, text in texts.items():
        shown = "".join(canvases[index][i] for i in sorted(canvases[index]))
        assert text
        assert shown.startswith(text)


def test_it_says_nothing_of_first_tokens(server: Any, client: Any) -> None:
    """Time to first token is that of the first block, watched or not."""
    before, ended = server.metrics(), "vllm:e2e_request_latency_seconds_count"
    list(complete(client, stream=True, vllm_xargs=ASKED))
    server.wait_for(lambda now: now[ended] > before[ended])
    after = server.metrics()
    name = "vllm:time_to_first_token_seconds_count"
    assert after[name] == before[name] + 1
    tokens = after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"]
    assert tokens == len(SOLVED) + 1


def test_who_leaves_ends_the_request(server: Any, client: Any) -> None:
    before = server.metrics()["vllm:request_success_total"]
    long: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "temperature": 1.0}
    with complete(client, stream=True, vllm_xargs=ASKED, **long) as stream:
        next(iter(stream))
    server.wait_for(lambda now: now["vllm:num_requests_running"] == 0)
    assert server.metrics()["vllm:request_success_total"] >= before
    assert complete(client).choices[0].text == SOLVED


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"vllm_xargs": ASKED}, "diffusion_stream='steps' has an effect in a stream only"),
        ({"stream": True, "vllm_xargs": {"diffusion_stream": 1}}, "diffusion_stream=1 must be 'steps'"),
        ({"diffusion_stream": "steps"}, "Diffusion parameters are members of vllm_xargs"),
    ],
)
def test_what_is_refused(client: Any, asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(Exception, match=reason) as caught:
        complete(client, **asked)
    assert caught.value.status_code == 400  # type: ignore[attr-defined]


def test_hidden_reasoning_stays_hidden(client: Any) -> None:
    asked = {"include_reasoning": False, "vllm_xargs": ASKED}
    with pytest.raises(Exception, match="shows blocks whole, with the reasoning") as caught:
        chat(client, stream=True, extra_body=asked)
    assert caught.value.status_code == 400  # type: ignore[attr-defined]


def test_responses_have_none(client: Any) -> None:
    with pytest.raises(Exception, match="diffusion_stream has an effect on completions"):
        client.responses.create(model=MODEL, input=SUDOKU, extra_body={"vllm_xargs": ASKED})
