# SPDX-License-Identifier: Apache-2.0
"""A block-causal model's prompts: their log probabilities against plain forward passes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.cases import Case, expected, random_prompt, reference
from tests.engine.likelihoods import ESTIMATORS, assert_scores, params_of, scored, values_of
from tests.reference.likelihood import scores

BLOCK = 16


def want(text: list[int], estimator: str, begin: int = 1, block: int = BLOCK) -> list[float]:
    """What the plain reference says."""
    sdar = reference()
    return scores(
        lambda ids: sdar.logits(ids, block), text, sdar.mask_id, begin, block, at_once=estimator == "one_step"
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("length", [2, 15, 16, 17, 40])
def test_as_the_reference(engine: Any, estimator: str, length: int) -> None:
    text = list(random_prompt(length, 61))
    (output,) = scored(engine, [text], [params_of(likelihood=estimator)])
    assert_scores(output, text, want(text, estimator))
    assert len(output.outputs[0].token_ids) == 1


def mixed() -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Scored and ordinary requests of all lengths, estimators and block lengths."""
    texts, given = [], []
    for i in range(12):
        texts.append(list(random_prompt((3, 24, 50, 130)[i % 4], 70 + i)))
        own: dict[str, Any] = {"block_length": (4, 16)[i % 2], "max_tokens": 1 + 7 * (i % 3)}
        if i % 3:
            own |= {"likelihood": ESTIMATORS[i % 2], "score_from": (None, 2, 20)[i % 3] if i % 4 else None}
        else:
            own |= {"prompt_logprobs": None}
        given.append(own)
    return texts, given


def test_a_mixed_batch_is_as_each_alone(engine: Any) -> None:
    texts, given = mixed()
    together = scored(engine, texts, [params_of(**own) for own in given])
    for text, own, output in zip(texts, given, together, strict=True):
        alone = params_of(
            max_tokens=own["max_tokens"], block_length=own["block_length"], prompt_logprobs=None
        )
        (plain,) = scored(engine, [text], [alone])
        assert output.outputs[0].token_ids == plain.outputs[0].token_ids
        if own.get("prompt_logprobs", 0) is None:
            assert output.prompt_logprobs is None
            continue
        begin = own["score_from"] or 1
        assert_scores(output, text, want(text, own["likelihood"], begin, own["block_length"]), begin)


def test_beside_a_request_that_asks_for_more(engine: Any) -> None:
    """A step's tables are as wide as its widest request; the first steps have one, the last ones have not."""
    text = list(random_prompt(40, 63))
    (alone,) = scored(engine, [text], [params_of(prompt_logprobs=1)])
    short = params_of(prompt_logprobs=None, max_tokens=16, algorithm="sequential", steps=16)
    short.logprobs = 5
    beside = scored(engine, [text, text[:9]], [params_of(prompt_logprobs=1), short])
    assert [set(e) for e in beside[0].prompt_logprobs[1:]] == [set(e) for e in alone.prompt_logprobs[1:]]
    assert len(beside[1].outputs[0].logprobs) == 16


def test_the_best_tokens_stand_beside(engine: Any) -> None:
    text = list(random_prompt(20, 62))
    (output,) = scored(engine, [text], [params_of(prompt_logprobs=3)])
    sdar = reference()
    row = sdar.logits(text[:18] + [sdar.mask_id] * 14, BLOCK)[18].double().log_softmax(-1)
    row[sdar.mask_id] = -float("inf")
    best = row.topk(3)
    entry = output.prompt_logprobs[18]
    assert set(best.indices.tolist()) <= entry.keys() <= {*best.indices.tolist(), text[18]}
    for rank, (value, token) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), 1):
        assert entry[token].rank == rank
        assert entry[token].logprob == pytest.approx(value, abs=2e-4)
    assert entry[text[18]].rank == 1 + int((row > row[text[18]]).sum())


def test_the_answer_is_that_of_a_request_that_asks_for_no_scores(engine: Any) -> None:
    """Whatever it asks for: sampling, penalties, log probabilities, a trace, a grammar."""
    text = list(random_prompt(21, 63))
    ways: list[dict[str, Any]] = [
        {"temperature": 0.9, "seed": 5, "top_k": 20, "presence_penalty": 1.0},
        {"repetition_penalty": 1.3, "min_tokens": 12, "ignore_eos": False},
        {"trace": True, "logprobs": 2, "algorithm": "low_confidence_static", "steps": 3},
        {"max_steps": 2, "eos_early_stop": True, "ignore_eos": False},
        {"infill_ids": [7, -1, -1, 9, -1], "max_tokens": None},
    ]
    given = [{"max_tokens": 18, **way} for way in ways]
    asked = scored(engine, [text] * len(given), [params_of(**way) for way in given])
    plain = scored(engine, [text] * len(given), [params_of(prompt_logprobs=None, **way) for way in given])
    for one, other in zip(asked, plain, strict=True):
        assert_scores(one, text, want(text, "left_to_right"))
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        reports = [output.outputs[0].diffusion for output in (one, other)]
        assert reports[0].steps == reports[1].steps
        assert reports[0].trace == reports[1].trace
        assert (reports[1].likelihood, reports[0].likelihood.estimator) == (None, "left_to_right")
        assert reports[0].likelihood.steps == len(text) - 1


def test_an_end_token_in_the_text_ends_nothing(engine: Any) -> None:
    text = list(random_prompt(30, 64))
    (free,) = scored(engine, [text], [params_of(max_tokens=12, prompt_logprobs=None)])
    stops = [text[3], text[12], text[29]]
    params = params_of(max_tokens=12, stop_token_ids=stops, ignore_eos=False)
    (output,) = scored(engine, [text], [params])
    assert_scores(output, text, want(text, "left_to_right"))
    tokens = list(free.outputs[0].token_ids)
    cut = next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))
    assert list(output.outputs[0].token_ids) == tokens[:cut]


def test_an_abort_while_a_text_is_scored(engine: Any) -> None:
    """It leaves nothing behind: not in the request beside it, nor in the next text that is scored."""
    core = engine.llm_engine
    text = list(random_prompt(900, 65))
    keep = Case(random_prompt(40, 14), 40, "low_confidence_static", 8)
    core.add_request("drop", {"prompt_token_ids": text}, params_of())
    core.add_request("keep", {"prompt_token_ids": list(keep.prompt)}, keep.sampling_params())
    kept: list[int] = []
    while core.has_unfinished_requests():
        for output in core.step():
            assert output.request_id == "keep", "the text was scored before the abort"
            if not kept:
                core.abort_request(["drop"])
            kept = list(output.outputs[0].token_ids)
    assert kept == expected(keep).output_ids
    short = text[:40]
    (output,) = scored(engine, [short], [params_of()])
    assert_scores(output, short, want(short, "left_to_right"))


def test_a_prompt_of_one_token_has_no_scores(engine: Any) -> None:
    (output,) = scored(engine, [[5]], [params_of()])
    assert output.prompt_logprobs == [None]
    assert len(output.outputs[0].token_ids) == 1


def test_several_answers_of_a_scored_prompt(engine: Any) -> None:
    text = list(random_prompt(9, 65))
    (output,) = scored(engine, [text], [params_of(n=2, temperature=1.0, seed=3, max_tokens=5)])
    assert_scores(output, text, want(text, "left_to_right"))
    assert len(output.outputs) == 2


def test_flat_log_probabilities(engine: Any) -> None:
    text = list(random_prompt(9, 66))
    plain, flat = scored(
        engine, [text] * 2, [params_of(score_from=4), params_of(score_from=4, flat_logprobs=True)]
    )
    flat_values = [
        None if not entry else entry[token].logprob
        for entry, token in zip(flat.prompt_logprobs, text, strict=True)
    ]
    assert flat_values == [None] * 4 + values_of(plain, text, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"prompt_logprobs": None, "likelihood": "one_step"},
            "diffusion_likelihood='one_step' has no effect",
        ),
        ({"prompt_logprobs": None, "score_from": 3}, "diffusion_score_from=3 has no effect"),
        ({"score_from": 9}, "diffusion_score_from=9 must be below the prompt's 9 tokens"),
    ],
)
def test_refused(engine: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored(engine, [list(random_prompt(9, 67))], [params_of(**given)])
