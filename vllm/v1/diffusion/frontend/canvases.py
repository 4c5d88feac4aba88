# SPDX-License-Identifier: Apache-2.0
"""Open blocks on their way into a stream: chunks of their own, beside those of finished blocks.

A stream with ``diffusion_stream: "steps"`` has two sources. Upstream's generator makes the ordinary chunks
and never sees a canvas, so those chunks are the same with and without. The canvases come out of the same
queue of outputs as the tokens do, and so in their order.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, ParamSpec

from vllm.outputs import RequestOutput
from vllm.v1.diffusion.message.canvas import MASK
from vllm.v1.diffusion.message.pieces import Piece, pieces
from vllm.v1.diffusion.message.report import take_report

if TYPE_CHECKING:
    from vllm.tokenizers import TokenizerLike
    from vllm.v1.diffusion.message.canvas import CanvasStep
    from vllm.v1.engine import EngineCoreOutput

_P = ParamSpec("_P")
_Canvases = list[tuple[int, "CanvasStep"]]
"""Of which choice of a request, and its open block."""

STREAM = "diffusion_stream"
"""Asks a stream for open blocks."""

HIDDEN = "\u2591"
"""Stands in a canvas's text for an open position."""

MOST_WAITING = 2**18
"""Positions of canvases that wait for a stream's reader. One that is slower misses the oldest steps."""

_DECODED = 2**15
"""Texts of neighbouring tokens that a stream keeps, since a step changes few of them."""


class CanvasOutput(RequestOutput):
    """Open blocks of a request behind steps that emitted nothing.

    It has no ``outputs``. Where tokens come before it is read, it becomes their output and keeps these.
    """

    def __init__(self, request_id: str, canvases: _Canvases) -> None:
        super().__init__(
            request_id=request_id,
            prompt=None,
            prompt_token_ids=None,
            prompt_logprobs=None,
            outputs=[],
            finished=False,
        )
        self.canvases = canvases

    def add(self, next_output: RequestOutput, aggregate: bool) -> None:
        """Takes what comes behind it; see upstream."""
        if self.outputs:
            super().add(next_output, aggregate)
        else:
            vars(self).update(vars(next_output), canvases=self.canvases)


def canvases_of(output: RequestOutput) -> _Canvases:
    """The open blocks that came with an output of a stream, oldest first, each with its choice's index."""
    return getattr(output, "canvases", [])


def take_reports(
    processor: Any, outputs: Sequence[EngineCoreOutput], made: list[Any]
) -> list[EngineCoreOutput]:
    """Takes what the engine core reports of denoising, before the outputs are processed.

    Args:
        processor: Upstream's output processor. Its requests' states and queues are changed.
        outputs: What the engine core sent.
        made: Request outputs for callers without queues; open blocks are added.

    Returns:
        The outputs that have more than open blocks. So no statistic counts the others as a first token.
    """
    rest = []
    for output in outputs:
        state = processor.request_states.get(output.request_id)
        report = output.diffusion
        if state is not None:
            if report is not None and report.canvases:
                _send(state, report.canvases, made)
                report.canvases = None
                if not (report.steps or output.new_token_ids or output.finished):
                    continue
            take_report(state, output)
        rest.append(output)
    return rest


def _send(state: Any, canvases: Iterable[CanvasStep], made: list[Any]) -> None:
    """Puts open blocks of a request into its queue."""
    request_id = (state.parent_req or state).external_req_id
    new = [(state.request_index, canvas) for canvas in canvases]
    if (queue := state.queue) is None:
        made.append(CanvasOutput(request_id, new))
        return
    waiting = queue.output
    if not isinstance(waiting, RequestOutput):
        queue.put(CanvasOutput(request_id, new))
        return
    if waiting.finished:
        return
    held = [*canvases_of(waiting), *new]
    excess = sum(len(canvas.tokens) for _, canvas in held) - MOST_WAITING
    while excess > 0:
        excess -= len(held.pop(0)[1].tokens)
    waiting.canvases = held  # type: ignore[attr-defined]


def streams_canvases(
    stream: Callable[_P, AsyncGenerator[str, None]],
) -> Callable[_P, AsyncGenerator[str, None]]:
    """Makes a method that writes a response's events write the open blocks too, where the request asks.

    Args:
        stream: A method of upstream's, which reads ``result_generator``.
    """
    signature = inspect.signature(stream)

    @functools.wraps(stream)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> AsyncGenerator[str, None]:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        if not (given["request"].vllm_xargs or {}).get(STREAM):
            return stream(*args, **kwargs)
        events = _Events()
        given["result_generator"] = events.read(given["result_generator"], _Chunks(given))
        return events.written(stream(*bound.args, **bound.kwargs))

    return call


class _Events:
    """The events of one response, from upstream's generator and from canvases."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[str | None] = asyncio.Queue()
        # One at a time: what is not read yet waits in the request's queue, where outputs are joined.
        self._room = asyncio.Semaphore(1)

    async def read(self, results: AsyncIterator[Any], chunks: _Chunks) -> AsyncGenerator[Any, None]:
        """Writes the canvases of a request's outputs and hands on the rest, as upstream reads it."""
        async for item in results:
            prompt, output = item if isinstance(item, tuple) else (0, item)
            for index, canvas in canvases_of(output):
                await self._write(chunks.of(prompt, index, canvas))
            if output.outputs or output.finished:
                yield item

    async def written(self, ordinary: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """All events in order, until upstream's generator ends."""
        writing = asyncio.create_task(self._write_all(ordinary))
        writing.add_done_callback(lambda _: self._events.put_nowait(None))
        try:
            while (event := await self._events.get()) is not None:
                yield event
                self._room.release()
            await writing
        finally:
            # A client that has gone: upstream's generator aborts its request.
            writing.cancel()
            await asyncio.wait((writing,))

    async def _write_all(self, ordinary: AsyncGenerator[str, None]) -> None:
        async with aclosing(ordinary):
            async for event in ordinary:
                await self._write(event)

    async def _write(self, event: str) -> None:
        await self._room.acquire()
        self._events.put_nowait(event)


class _Chunks:
    """Makes the chunks of canvases of one response."""

    def __init__(self, given: dict[str, Any]) -> None:
        """Reads what the chunks have in common.

        Args:
            given: The arguments of upstream's generator.
        """
        request = given["request"]
        chat = hasattr(request, "messages")
        self._choices = request.n or 1
        self._text: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        self._head = {
            "id": given["request_id"],
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": given.get("created_time") or int(time.time()),
            "model": given["model_name"],
        }
        tokenizer = given["tokenizer"]
        self._tokenizer = None if tokenizer is None else _Decoded(tokenizer)

    def of(self, prompt: int, index: int, canvas: CanvasStep) -> str:
        """The event of one canvas.

        Args:
            prompt: Which of the request's prompts.
            index: Which of its choices.
            canvas: The open block.
        """
        choice = {
            "index": prompt * self._choices + index,
            **self._text,
            "logprobs": None,
            "finish_reason": None,
            "diffusion": {"canvas": self._shown(canvas)},
        }
        return f"data: {json.dumps({**self._head, 'choices': [choice]})}\n\n"

    def _shown(self, canvas: CanvasStep) -> dict[str, Any]:
        shown: dict[str, Any] = {"step": canvas.step, "begin": canvas.begin}
        if self._tokenizer is not None:
            texts = canvas_pieces(self._tokenizer, canvas)
            open_ = set(canvas.open)
            shown["text"] = "".join(
                piece.text or (HIDDEN if i in open_ else "") for i, piece in enumerate(texts)
            )
            shown["pieces"] = [piece.text for piece in texts]
            shown["special"] = [i for i, piece in enumerate(texts) if piece.special]
        return {
            **shown,
            "token_ids": canvas.tokens,
            "open": canvas.open,
            "confidence": canvas.confidence,
        }


class _Decoded:
    """What ``pieces`` reads of a tokenizer, remembered."""

    def __init__(self, tokenizer: TokenizerLike) -> None:
        self.all_special_ids = list(tokenizer.all_special_ids)
        decode = functools.lru_cache(_DECODED)(lambda ids: tokenizer.decode(list(ids)))
        self.decode: Callable[[Sequence[int]], str] = lambda ids: str(decode(tuple(ids)))


def canvas_pieces(tokenizer: Any, canvas: CanvasStep) -> list[Piece]:
    """The text of each position of a canvas.

    A mask has none. The random tokens of models without a mask have theirs.

    Args:
        tokenizer: What ``pieces`` reads.
        canvas: The canvas.
    """
    open_ = set(canvas.open)
    found: list[Piece] = []
    run: list[int] = []

    def end_run() -> None:
        inside = bool(canvas.begin or len(found))
        found.extend(pieces(tokenizer, run, inside))
        run.clear()

    for i, token_id in enumerate(canvas.tokens):
        if i not in open_:
            run.append(token_id)
            continue
        end_run()
        found.append(Piece("" if token_id == MASK else tokenizer.decode([token_id]), False))
    end_run()
    return found
