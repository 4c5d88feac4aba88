# SPDX-License-Identifier: Apache-2.0
"""The unmasking order, on demand."""

from __future__ import annotations

from typing import Any

from tests.engine.cases import Case, expected, random_prompt
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

CASE = Case(random_prompt(30, 30), 30, "low_confidence_static", 8, steps=4)


def test_no_trace_unless_asked_for(engine: Any) -> None:
    output = engine.generate(
        [{"prompt_token_ids": list(CASE.prompt)}],
        SamplingParams(temperature=0, max_tokens=8),
        use_tqdm=False,
    )[0].outputs[0]
    assert output.diffusion.trace is None
    # Two blocks of 4 at the engine's default, a step for every token that the canvas had masked.
    assert output.diffusion.steps == sum(output.diffusion.steps_per_block) > 0
    assert output.diffusion.tokens_per_forward == round(8 / output.diffusion.steps, 4)
    assert output.spec_decode_metrics is None


def test_traces_stream_with_their_tokens(engine: Any) -> None:
    core = engine.llm_engine
    params = CASE.sampling_params()
    params.output_kind = RequestOutputKind.DELTA
    core.add_request("trace", {"prompt_token_ids": list(CASE.prompt)}, params)
    pieces = []
    while core.has_unfinished_requests():
        for output in core.step():
            completion = output.outputs[0]
            assert len(completion.diffusion.trace) == len(completion.token_ids)
            assert len(completion.diffusion.entropies) == len(completion.token_ids)
            pieces.append(completion.diffusion.trace)
    # 2 tokens end the prompt's block, then whole blocks, then what is left.
    assert [len(p) for p in pieces] == [2, 8, 8, 8, 4]
    steps = [step for piece in pieces for step, _ in piece]
    assert steps == expected(CASE).unmask_step
    assert all(0 < p <= 1 for piece in pieces for _, p in piece)
