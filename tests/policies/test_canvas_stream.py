# SPDX-License-Identifier: Apache-2.0
"""Open blocks between the worker and a stream, without an engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.v1.diffusion.frontend import canvases
from vllm.v1.diffusion.frontend.canvases import (
    CanvasOutput,
    canvas_pieces,
    canvases_of,
    streams_canvases,
    take_reports,
)
from vllm.v1.diffusion.message.canvas import CanvasStep
from vllm.v1.diffusion.message.report import DenoisingReport
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

NAN = float("nan")


def canvas(step: int, *tokens: int, begin: int = 0) -> CanvasStep:
    """Tokens below 0 are masks."""
    masks = [i for i, token in enumerate(tokens) if token < 0]
    return CanvasStep(step, begin, list(tokens), masks, [0.0 if token < 0 else 0.5 for token in tokens])


def ordinary(*token_ids: int, finished: bool = False, index: int = 0) -> RequestOutput:
    reason = "length" if finished else None
    choice = CompletionOutput(index, "x" * len(token_ids), list(token_ids), None, None, finish_reason=reason)
    return RequestOutput("r", "prompt", [1], [None], [choice], finished)


def test_a_row_says_what_stands_at_its_position() -> None:
    rows = np.array(
        [[-1, 0.25, 0, 7], [0, 1, 0, -1], [0, 1, 0, -2 - 30], [-2, 1, 0, 2**24 - 1], [0, 1, 0, NAN]],
        dtype=np.float32,
    )
    assert CanvasStep.of(rows, step=3, begin=8) == CanvasStep(
        3, 8, [7, -1, 30, 2**24 - 1], [1, 2], [0.25, 0.0, 0.0, 1.0]
    )


def test_it_crosses_to_another_process() -> None:
    report = DenoisingReport(canvases=[canvas(2, 5, -1, begin=4)])
    sent = MsgpackEncoder().encode(EngineCoreOutput(request_id="r", new_token_ids=[], diffusion=report))
    assert MsgpackDecoder(EngineCoreOutput).decode(sent).diffusion.canvases == report.canvases


class Words:
    """Decodes as sentencepiece does: a text's first space is dropped. 100 and 101 are halves of a letter."""

    all_special_ids = (9,)

    def decode(self, ids: Any) -> str:
        halves = {(100,): "\ufffd", (101,): "\ufffd"}
        text, rest = "", list(ids)
        while rest:
            if rest[:2] == [100, 101]:
                text, rest = text + "é", rest[2:]
            else:
                text, rest = text + (halves.get((rest[0],)) or f" {rest[0]}"), rest[1:]
        return text.removeprefix(" ")


def texts(*tokens: int, begin: int = 0) -> list[str]:
    return [piece.text for piece in canvas_pieces(Words(), canvas(0, *tokens, begin=begin))]


def test_each_position_has_its_text() -> None:
    assert texts(1, 2, -1, 3) == ["1", " 2", "", " 3"]
    assert texts(1, 2, begin=4) == [" 1", " 2"]
    assert texts(100, 101, -1, 100, 101, 5) == ["", "é", "", "", "é", " 5"]
    # Half of a letter, before a hole and after one.
    assert texts(-1, 100, -1, 101)[::2] == ["", ""]
    pieces = canvas_pieces(Words(), CanvasStep(0, 4, [9, 3, 9], [1], [1.0, 0.0, 1.0]))
    # A random token at an open position shows itself.
    assert [(p.text, p.special) for p in pieces] == [("9", True), ("3", False), ("9", True)]


class Requests:
    """What ``take_reports`` reads of upstream's output processor."""

    def __init__(self, *queues: Any) -> None:
        self.request_states = {
            f"r{i}": SimpleNamespace(
                queue=queue, parent_req=None, external_req_id=f"r{i}", request_index=0, diffusion=None
            )
            for i, queue in enumerate(queues)
        }

    def take(self, *reports: tuple[str, list[int], DenoisingReport | None]) -> tuple[list[Any], list[Any]]:
        outputs = [EngineCoreOutput(request_id=i, new_token_ids=t, diffusion=r) for i, t, r in reports]
        made: list[Any] = []
        return take_reports(self, outputs, made), made


def queue() -> RequestOutputCollector:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputCollector(RequestOutputKind.DELTA, "r0")


def waiting_in(q: RequestOutputCollector) -> RequestOutput:
    read = q.get_nowait()
    assert isinstance(read, RequestOutput)
    return read


def test_a_canvas_alone_is_no_output_to_be_counted() -> None:
    requests = Requests(q := queue(), None)
    alone, of_block = DenoisingReport(canvases=[canvas(0, 5, -1)]), DenoisingReport(steps=2)
    rest, made = requests.take(("r0", [], alone), ("gone", [1], None), ("r1", [7], of_block))
    assert [output.request_id for output in rest] == ["gone", "r1"]
    assert made == []
    assert requests.request_states["r0"].diffusion is None
    assert requests.request_states["r1"].diffusion.steps == 2
    waiting = waiting_in(q)
    assert waiting.outputs == []
    assert canvases_of(waiting) == [(0, canvas(0, 5, -1))]


def test_a_canvas_with_tokens_leaves_them_as_they_are() -> None:
    requests = Requests(q := queue())
    report = DenoisingReport(steps=3, steps_per_block=[3], canvases=[canvas(2, 5, 6)])
    rest, _ = requests.take(("r0", [5, 6], report))
    assert [output.new_token_ids for output in rest] == [[5, 6]]
    kept = requests.request_states["r0"].diffusion
    assert (kept.steps, kept.canvases) == (3, None)
    assert canvases_of(waiting_in(q)) == [(0, canvas(2, 5, 6))]


def test_callers_without_queues_are_handed_canvases() -> None:
    _, made = Requests(None).take(("r0", [], DenoisingReport(canvases=[canvas(0, 5)])))
    assert [(output.request_id, canvases_of(output)) for output in made] == [("r0", [(0, canvas(0, 5))])]


def test_outputs_that_wait_stay_what_they_are() -> None:
    """Whatever waits when an output comes, what is read at last has the same tokens."""

    def drained(*events: Any) -> RequestOutput:
        requests = Requests(q := queue())
        for event in events:
            if isinstance(event, RequestOutput):
                q.put(event)
            else:
                requests.take(("r0", [], DenoisingReport(canvases=[event])))
        return waiting_in(q)

    first, second, third = canvas(0, 5, -1), canvas(1, 5, 6), canvas(2, -1, begin=2)
    plain = vars(drained(ordinary(5, 6), ordinary(7, finished=True)))
    seen = drained(first, second, ordinary(5, 6), third, ordinary(7, finished=True))
    assert canvases_of(seen) == [(0, first), (0, second), (0, third)]
    assert {name: vars(seen)[name] for name in plain} == plain
    # Another choice of the request waits with its tokens.
    both = drained(first, ordinary(5, index=0), ordinary(8, index=1))
    assert [choice.token_ids for choice in both.outputs] == [[5], [8]]


def test_a_slow_reader_misses_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvases, "MOST_WAITING", 6)
    requests = Requests(q := queue())
    for step in range(9):
        requests.take(("r0", [], DenoisingReport(canvases=[canvas(step, 5, -1)])))
    assert [c.step for _, c in canvases_of(waiting_in(q))] == [6, 7, 8]


class Serving:
    """Upstream's streams, as far as they matter: one reads outputs and writes their tokens."""

    def __init__(self) -> None:
        self.closed = False

    @streams_canvases
    async def stream(
        self,
        request: Any,
        result_generator: Any,
        request_id: str,
        model_name: str,
        tokenizer: Any,
        created_time: int = 0,
    ) -> AsyncGenerator[str, None]:
        try:
            async for item in result_generator:
                for output in (item[1] if isinstance(item, tuple) else item).outputs:
                    yield f"data: {list(output.token_ids)}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.closed = True


def asking(streams: bool, **fields: Any) -> Any:
    xargs = {"diffusion_stream": "steps"} if streams else None
    return SimpleNamespace(vllm_xargs=xargs, n=None, **fields)


async def results(*outputs: RequestOutput, tagged: bool = False) -> AsyncGenerator[Any, None]:
    for output in outputs:
        await asyncio.sleep(0)
        yield (1, output) if tagged else output


def outputs() -> list[RequestOutput]:
    alone = CanvasOutput("r", [(0, canvas(0, 5, -1)), (0, canvas(1, 5, -1))])
    block = ordinary(5, 6)
    block.canvases = [(0, canvas(2, 5, 6))]  # type: ignore[attr-defined]
    return [alone, block, ordinary(7, finished=True)]


def read(request: Any, tagged: bool = False) -> list[str]:
    async def all_of() -> list[str]:
        source = results(*outputs(), tagged=tagged)
        return [e async for e in Serving().stream(request, source, "id", "model", Words(), created_time=4)]

    return asyncio.run(all_of())


def test_ordinary_events_are_the_same_and_canvases_come_between() -> None:
    plain = [event for event in read(asking(False)) if event != "data: []\n\n"]
    assert plain == ["data: [5, 6]\n\n", "data: [7]\n\n", "data: [DONE]\n\n"]
    seen = read(asking(True))
    assert [event for event in seen if "canvas" not in event] == plain
    assert ["canvas" in event for event in seen] == [True, True, True, False, False, False]
    chunk = json.loads(seen[0].removeprefix("data: "))
    assert chunk == {
        "id": "id",
        "object": "text_completion",
        "created": 4,
        "model": "model",
        "choices": [
            {
                "index": 0,
                "text": "",
                "logprobs": None,
                "finish_reason": None,
                "diffusion": {
                    "canvas": {
                        "step": 0,
                        "begin": 0,
                        "text": "5░",
                        "pieces": ["5", ""],
                        "special": [],
                        "token_ids": [5, -1],
                        "open": [1],
                        "confidence": [0.5, 0.0],
                    }
                },
            }
        ],
    }


def test_of_which_prompt_and_in_a_chat() -> None:
    completion = json.loads(read(asking(True), tagged=True)[0].removeprefix("data: "))
    assert completion["choices"][0]["index"] == 1
    chunk = json.loads(read(asking(True, messages=[]))[0].removeprefix("data: "))
    assert chunk["object"] == "chat.completion.chunk"
    assert chunk["choices"][0]["delta"] == {}
    assert "text" not in chunk["choices"][0]


@pytest.mark.parametrize("read_before", [0, 1, 4])
def test_who_leaves_ends_upstream_s_generator(read_before: int) -> None:
    async def leave() -> tuple[bool, bool]:
        serving, ended = Serving(), False

        async def endless() -> AsyncGenerator[Any, None]:
            nonlocal ended
            try:
                while True:
                    await asyncio.sleep(0)
                    yield outputs()[1]
            finally:
                ended = True

        source = endless()
        stream = serving.stream(asking(True), source, "id", "model", Words())
        reader = asyncio.create_task(_take(stream, read_before))
        await asyncio.sleep(0.05)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        await stream.aclose()
        await source.aclose()
        return serving.closed or not read_before, ended or not read_before

    assert asyncio.run(leave()) == (True, True)


async def _take(stream: AsyncGenerator[str, None], count: int) -> None:
    for _ in range(count):
        await anext(stream)
    await asyncio.Event().wait()


def test_a_reader_who_waits_does_not_make_events_pile_up() -> None:
    async def piled() -> int:
        taken = 0

        async def counted() -> AsyncGenerator[Any, None]:
            nonlocal taken
            for _ in range(50):
                taken += 1
                yield outputs()[1]

        stream = Serving().stream(asking(True), counted(), "id", "model", Words())
        await anext(stream)
        for _ in range(100):
            await asyncio.sleep(0)
        before = taken
        await stream.aclose()
        return before

    assert asyncio.run(piled()) <= 2
