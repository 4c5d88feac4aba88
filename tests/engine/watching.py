# SPDX-License-Identifier: Apache-2.0
"""Requests whose open blocks are watched, and what must hold of what was seen."""

from __future__ import annotations

from typing import Any, NamedTuple

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.diffusion.frontend.canvases import canvases_of
from vllm.v1.diffusion.message.canvas import MASK, CanvasStep


class Watched(NamedTuple):
    """What came of a request, in a stream.

    ``deltas`` are the tokens of its outputs, ``steps`` are those of its trace, and ``order`` says of each
    output whether it had canvases only.
    """

    deltas: list[list[int]]
    steps: list[int]
    canvases: list[CanvasStep]
    order: list[bool]


def watch(llm: Any, prompt: list[int], params: SamplingParams, stream: bool = True) -> Watched:
    """Runs a request as a stream of deltas.

    Args:
        llm: The engine.
        prompt: The prompt's ids.
        params: The parameters; changed.
        stream: Whether its open blocks are watched.
    """
    core = llm.llm_engine
    params.output_kind = RequestOutputKind.DELTA
    params.extra_args = {**(params.extra_args or {}), "diffusion_trace": True}
    if stream:
        params.extra_args["diffusion_stream"] = "steps"
    core.add_request("watched", {"prompt_token_ids": prompt}, params)
    seen = Watched([], [], [], [])
    while core.has_unfinished_requests():
        for output in core.step():
            seen.canvases.extend(canvas for _, canvas in canvases_of(output))
            seen.order.append(not output.outputs)
            for completion in output.outputs:
                seen.deltas.append(list(completion.token_ids))
                seen.steps.extend(step for step, _ in completion.diffusion.trace or ())
    return seen


def check(seen: Watched, rewrites: bool = False) -> None:
    """Checks that canvases tell what tokens and trace tell.

    Args:
        seen: What was seen.
        rewrites: Whether a token may change before it is emitted.
    """
    tokens = [token for delta in seen.deltas for token in delta]
    assert [canvas.step for canvas in seen.canvases] == list(range(len(seen.canvases)))
    # The last block may take steps for tokens that max_tokens cuts.
    assert len(seen.canvases) > max(seen.steps)
    unmasked: dict[int, int] = {}
    last: dict[int, int] = {}
    for canvas in seen.canvases:
        assert len(canvas.confidence) == len(canvas.tokens)
        for i, token in enumerate(canvas.tokens):
            position = canvas.begin + i
            if i in canvas.open:
                assert canvas.confidence[i] == 0
                unmasked.pop(position, None)
                continue
            assert token != MASK
            assert 0 < canvas.confidence[i] <= 1
            assert rewrites or last.get(position, token) == token
            unmasked.setdefault(position, canvas.step)
            last[position] = token
    # Behind an answer's end a canvas has more.
    assert [last[i] for i in range(len(tokens))] == tokens
    assert [unmasked[i] for i in range(len(tokens))] == seen.steps
