# SPDX-License-Identifier: Apache-2.0
"""The unmasking order, on demand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.engine.cases import Case, expected, random_prompt
from tests.engine.watching import check, watch
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.diffusion.frontend.canvases import canvases_of

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


def test_open_blocks_stream_beside_their_tokens(engine: Any) -> None:
    plain = watch(engine, list(CASE.prompt), CASE.sampling_params(), stream=False)
    seen = watch(engine, list(CASE.prompt), CASE.sampling_params())
    assert (plain.canvases, sum(plain.order)) == ([], 0)
    assert (seen.deltas, seen.steps) == (plain.deltas, plain.steps)
    check(seen)
    # 2 tokens end the prompt's block, then whole blocks of 8; max_tokens cuts what is emitted of the last.
    begins = {canvas.begin: len(canvas.tokens) for canvas in seen.canvases}
    assert begins == {0: 2, 2: 8, 10: 8, 18: 8, 26: 8}
    # No step is without its canvas, and the last one of a block comes with the block.
    assert seen.order.count(False) == len(seen.deltas)
    assert sum(not canvas.open for canvas in seen.canvases) == len(seen.deltas)


def test_open_blocks_beside_other_requests(engine: Any) -> None:
    """A batch in which some are watched: of each its own, and none of the others'."""
    core = engine.llm_engine
    for i, stream in enumerate((True, False, True)):
        case = Case(random_prompt(40 + i, 9 + i), 12, "low_confidence_static", 8, steps=3)
        params = case.sampling_params()
        params.output_kind = RequestOutputKind.DELTA
        if stream:
            params.extra_args["diffusion_stream"] = "steps"
        core.add_request(f"beside-{i}", {"prompt_token_ids": list(case.prompt)}, params)
    said: dict[str, list[Any]] = {}
    tokens: dict[str, list[int]] = {}
    while core.has_unfinished_requests():
        for output in core.step():
            said.setdefault(output.request_id, []).extend(c for _, c in canvases_of(output))
            for completion in output.outputs:
                tokens.setdefault(output.request_id, []).extend(completion.token_ids)
    assert said["beside-1"] == []
    for name in ("beside-0", "beside-2"):
        last = {c.begin + i: token for c in said[name] for i, token in enumerate(c.tokens)}
        assert [last[i] for i in range(12)] == tokens[name]


def test_candidates_of_every_step(engine: Any) -> None:
    """Whole answers too; of the step that unmasked a token they are its log probabilities."""
    params = replace(CASE, logprobs=4).sampling_params()
    params.extra_args["diffusion_trace_top_k"] = 4
    output = engine.generate([{"prompt_token_ids": list(CASE.prompt)}], params, use_tqdm=False)[0].outputs[0]
    report = output.diffusion
    assert len(report.candidates) == len(output.token_ids)
    assert sum(map(len, report.candidates)) > 2 * len(output.token_ids)
    for token, (step, _), steps, reported in zip(
        output.token_ids, report.trace, report.candidates, output.logprobs, strict=True
    ):
        last = steps[-1]
        assert (last.step, last.ids[0], len(last.ids)) == (step, token, 4)
        assert last.ids == [i for i, entry in reported.items() if entry.rank <= 4]
        assert last.logprobs == pytest.approx([reported[i].logprob for i in last.ids], abs=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"diffusion_trace_top_k": 21}, r"^diffusion_trace_top_k=21 must be an integer from 0 to 20"),
        ({"diffusion_trace": False}, r"^diffusion_trace_top_k=2 has no effect without diffusion_trace"),
    ],
)
def test_candidates_that_are_refused(engine: Any, given: dict[str, Any], message: str) -> None:
    params = CASE.sampling_params()
    params.extra_args |= {"diffusion_trace_top_k": 2, **given}
    with pytest.raises(ValueError, match=message):
        engine.generate([{"prompt_token_ids": list(CASE.prompt)}], params, use_tqdm=False)


def test_whole_answers_have_no_stream(engine: Any) -> None:
    params = CASE.sampling_params()
    params.extra_args["diffusion_stream"] = "steps"
    prompt = [{"prompt_token_ids": list(CASE.prompt)}]
    with pytest.raises(ValueError, match=r"^diffusion_stream='steps' has an effect in a stream only"):
        engine.generate(prompt, params, use_tqdm=False)
    params.extra_args["diffusion_stream"] = "blocks"
    with pytest.raises(ValueError, match=r"^diffusion_stream='blocks' must be 'steps'"):
        engine.generate(prompt, params, use_tqdm=False)
