# SPDX-License-Identifier: Apache-2.0
"""Requests whose open blocks are watched, and what must hold of what was seen."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.diffusion.frontend.canvases import canvases_of
from vllm.v1.diffusion.message.candidates import StepCandidates
from vllm.v1.diffusion.message.canvas import MASK, CanvasStep


class Watched(NamedTuple):
    """What came of a request, in a stream.

    ``deltas`` are the tokens of its outputs, ``steps`` and ``probabilities`` are those of its trace, and
    ``order`` says of each output whether it had canvases only.
    """

    deltas: list[list[int]]
    steps: list[int]
    canvases: list[CanvasStep]
    order: list[bool]
    probabilities: list[float]
    candidates: list[list[StepCandidates]]


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
        params.extra_args |= {"diffusion_stream": "steps", "diffusion_trace_top_k": 3}
    core.add_request("watched", {"prompt_token_ids": prompt}, params)
    seen = Watched([], [], [], [], [], [])
    while core.has_unfinished_requests():
        for output in core.step():
            seen.canvases.extend(canvas for _, canvas in canvases_of(output))
            seen.order.append(not output.outputs)
            for completion in output.outputs:
                seen.deltas.append(list(completion.token_ids))
                report = completion.diffusion
                seen.steps.extend(step for step, _ in report.trace or ())
                seen.probabilities.extend(probability for _, probability in report.trace or ())
                seen.candidates.extend(report.candidates or ())
    return seen


def check(seen: Watched, rewrites: bool = False, anchored: bool = False) -> None:
    """Checks that canvases and candidates say what tokens and trace say, of a greedy request.

    Args:
        seen: What was seen.
        rewrites: Whether a token may change before it is emitted.
        anchored: Whether the first pass of a block may compute its first position alone.
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
    begun: dict[int, int] = {}
    for canvas in seen.canvases:
        for position in range(canvas.begin, canvas.begin + len(canvas.tokens)):
            begun.setdefault(position, canvas.step)
    assert len(seen.candidates) == len(tokens)
    for i, (steps, at) in enumerate(zip(seen.candidates, seen.steps, strict=True)):
        if anchored and not steps:  # Made by the pass that commits the block before.
            assert at == begun[i]
            continue
        begin = steps[0].step
        assert begin - begun[i] in ((0, 1) if anchored else (0,))
        assert [found.step for found in steps] == list(range(begin, at + 1))
        assert all(len(found.ids) == len(found.logprobs) == 3 for found in steps)
        if not rewrites:
            assert steps[-1].ids[0] == tokens[i]
            assert math.exp(steps[-1].logprobs[0]) == pytest.approx(seen.probabilities[i], abs=1e-4)
