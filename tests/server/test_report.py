# SPDX-License-Identifier: Apache-2.0
"""What a response says about its denoising: only where asked, and the truth."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.server.known_answers import FIRST_BLOCK, SOLVED, SUDOKU, chat, complete

TOKENS = len(SOLVED) + 1
HOW = {"diffusion_algorithm": "low_confidence_static", "diffusion_steps": 4}
ASKED: dict[str, Any] = {"vllm_xargs": {**HOW, "diffusion_stats": True, "diffusion_trace": True}}


def check_stats(said: Any) -> None:
    # 5 masks at 4 a step, then a block of 16.
    assert said["steps"] == 6
    assert said["steps_per_block"] == [2, 4]
    assert said["tokens_per_forward"] == pytest.approx(TOKENS / 6, abs=1e-4)


def check_trace(trace: Any, entropies: Any) -> None:
    steps = [step for step, _ in trace]
    assert len(trace) == TOKENS
    assert sorted(steps[: len(FIRST_BLOCK)]) == [0, 0, 0, 0, 1]
    assert set(steps[len(FIRST_BLOCK) :]) == {2, 3, 4, 5}
    assert all(0 < probability <= 1 for _, probability in trace)
    assert len(entropies) == TOKENS
    assert all(entropy >= 0 for entropy in entropies)
    # Who gives one token nearly all of the probability has nearly no entropy, and the other way round.
    for (_, probability), entropy in zip(trace, entropies, strict=True):
        assert entropy >= -math.log(probability) * probability - 1e-4


def test_a_completion_says_what_is_asked(client: Any) -> None:
    said = complete(client, **ASKED).choices[0].diffusion
    check_stats(said)
    check_trace(said["trace"], said["entropies"])
    answer = complete(client, vllm_xargs={**HOW, "diffusion_stats": True})
    assert set(answer.choices[0].diffusion) == {"steps", "steps_per_block", "tokens_per_forward"}
    answer = complete(client, vllm_xargs={**HOW, "diffusion_trace": True})
    assert set(answer.choices[0].diffusion) == {"trace", "entropies"}


def test_a_stream_tells_the_trace_with_its_tokens_and_the_rest_at_its_end(client: Any) -> None:
    choices = [c.choices[0] for c in complete(client, stream=True, **ASKED)]
    traces = [c.diffusion["trace"] for c in choices]
    assert [len(t) for t in traces] == [len(FIRST_BLOCK), TOKENS - len(FIRST_BLOCK)]
    check_trace(*([e for c in choices for e in c.diffusion[name]] for name in ("trace", "entropies")))
    assert "steps" not in choices[0].diffusion
    check_stats(choices[-1].diffusion)


def test_a_stop_string_hides_nothing(client: Any) -> None:
    """It is found outside of the engine, which goes on until it learns of it."""
    for streams in (False, True):
        answer = complete(client, stop=SOLVED[2:4], stream=streams, **ASKED)
        said = [c.choices[0] for c in answer][-1].diffusion if streams else answer.choices[0].diffusion
        assert said["steps"] == 2
        assert said["steps_per_block"] == [2]


def test_chat_tells_the_same(client: Any) -> None:
    whole = chat(client, extra_body=ASKED).choices[0].diffusion
    check_stats(whole)
    check_trace(whole["trace"], whole["entropies"])
    choices = [c.choices[0] for c in chat(client, extra_body=ASKED, stream=True)]
    reported = [c.diffusion for c in choices if hasattr(c, "diffusion")]
    for name in ("trace", "entropies"):
        assert [entry for said in reported for entry in said[name]] == whole[name]
    check_stats(reported[-1])


def test_candidates_come_with_the_trace(client: Any) -> None:
    asked: Any = {"vllm_xargs": {**HOW, "diffusion_trace": True, "diffusion_trace_top_k": 2}}
    answer = complete(client, logprobs=2, **asked).choices[0]
    said = answer.diffusion
    assert set(said) == {"trace", "entropies", "candidates"}
    assert len(said["candidates"]) == TOKENS
    for (step, _), steps, best in zip(
        said["trace"], said["candidates"], answer.logprobs.top_logprobs, strict=True
    ):
        begin = 0 if step < 2 else 2
        assert [found["step"] for found in steps] == list(range(begin, step + 1))
        assert all(len(found["ids"]) == len(found["logprobs"]) == 2 for found in steps)
        assert steps[-1]["logprobs"] == pytest.approx(sorted(best.values(), reverse=True)[:2], abs=1e-4)
    choices = [c.choices[0] for c in complete(client, stream=True, **asked)]
    assert [entry for c in choices for entry in c.diffusion["candidates"]] == said["candidates"]
    other = chat(client, extra_body=asked).choices[0].diffusion
    assert len(other["candidates"]) == len(other["trace"])


def test_each_of_several_choices_has_its_own(client: Any) -> None:
    how = {"vllm_xargs": {**ASKED["vllm_xargs"], "diffusion_algorithm": "sequential"}}
    sampled = {"n": 2, "temperature": 2.0, "seed": 3, "ignore_eos": True, "max_tokens": 19}
    answer = complete(client, "sudoku 0000/0000/0000/0000=", **sampled, **how)
    for choice in answer.choices:
        assert choice.diffusion["steps"] == 6
        assert len(choice.diffusion["trace"]) == 19
    first, second = (c.diffusion["trace"] for c in answer.choices)
    assert first != second


def test_nothing_is_said_unasked(client: Any) -> None:
    # Speculative decoding has no part in this, though the engine's records are its.
    answer = complete(client, vllm_xargs={**HOW, "diffusion_stats": False})
    assert not hasattr(answer.choices[0], "diffusion")
    assert answer.metrics is None
    assert "diffusion" not in chat(client).choices[0].model_extra
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert not any(hasattr(c.choices[0], "diffusion") for c in chunks if c.choices)
    assert not hasattr(chunks[-1], "metrics")


def test_responses_cannot_say_it(client: Any) -> None:
    with pytest.raises(Exception, match="diffusion_stats has an effect on completions"):
        client.responses.create(
            model="bundled", input=SUDOKU, extra_body={"vllm_xargs": {"diffusion_stats": 1}}
        )
