# SPDX-License-Identifier: Apache-2.0
"""Every parameter that changes logits, alone and together, against float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest

from tests.sampling.float64 import decode, distribution
from tests.sampling.options import OPTIONS, PROMPT, params, requests
from tests.sampling.rig import MASK, VOCABULARY, Request, Rig, model, numbers_of
from vllm.v1.diffusion.sampling.logits import LogitsPipeline
from vllm.v1.diffusion.sampling.step_logits import Part


def assert_same(answer: Any, want: Any, context: object) -> None:
    """Tokens and steps exactly, confidences and entropies nearly."""
    assert answer.tokens == want.tokens, context
    assert answer.steps == want.steps, context
    assert answer.confidence == pytest.approx(want.confidence, abs=2e-5), context
    assert answer.entropies == pytest.approx(want.entropies, abs=1e-4), context


@pytest.mark.parametrize("aligned", [False, True])
def test_alone_and_together(aligned: bool) -> None:
    """With blocks that begin anywhere (full diffusion) and at their multiples."""
    for request in requests():
        (answer,) = Rig(aligned=aligned, tempered=aligned).run([request], 12)
        assert_same(answer, decode(request, 12, aligned), request)


def test_in_mixed_batches() -> None:
    """The same, six at a time, through slots that others have used."""
    rig, all_wishes = Rig(), requests()
    for i in range(0, len(all_wishes), 6):
        batch = all_wishes[i : i + 6]
        for request, answer in zip(batch, rig.run(batch, 12), strict=True):
            assert_same(answer, decode(request, 12), request)
        # Where nobody asks how it finished, nothing is kept of that.
        for request, answer in zip(batch, rig.run([replace(w, trace=False) for w in batch], 12), strict=True):
            assert answer.tokens == decode(request, 12).tokens
            assert answer.steps == []


def test_logits_are_changed_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows are copied at a time, draws and log probabilities come out the same."""
    names = [n for n in OPTIONS if n != "none"]
    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"top_k": 5}, {}),
        ({"top_p": 0.7}, {"algorithm": "threshold", "threshold": 0.2}),
        ({"min_p": 0.05}, {"algorithm": "credit", "threshold": 0.2}),
        ({}, {}),
        ({"top_k": 9, "top_p": 0.8}, {"algorithm": "credit", "threshold": 0.1}),
        ({"top_k": 3}, {}),
    ]
    batch = []
    for i, (filters, how) in enumerate(ways):
        options = params(**OPTIONS[names[i]], temperature=0.8, seed=i, **filters, logprobs=2)
        length = (8, 4)[i % 2]
        batch.append(Request(options, PROMPT[: 2 + i], key=70 + i, steps=2, block_length=length, **how))
    batch[5].params._bad_words_token_ids = OPTIONS["bad_words"]["bad_words"]
    sizes = []
    change = LogitsPipeline._change

    def seen(*args: Any) -> Part:
        part = change(*args)
        sizes.append(len(part.logits))
        return part

    monkeypatch.setattr(LogitsPipeline, "_change", seen)
    for mode in ("raw_logprobs", "processed_logprobs"):
        want = Rig(mode=mode).run(batch, 12)
        assert max(sizes) > 10
        sizes.clear()
        with monkeypatch.context() as small:
            small.setattr("vllm.v1.diffusion.sampling.step_logits.MOST_BYTES", 3 * 4 * VOCABULARY)
            assert Rig(mode=mode).run(batch, 12) == want
        assert max(sizes) == 3
        sizes.clear()


def test_the_mask_token_is_never_chosen() -> None:
    """Though the model prefers it, in every filter too."""
    for options in (
        {},
        {"logit_bias": {MASK: 50.0}},
        {"temperature": 1.0, "top_k": 1, "logit_bias": {MASK: 50.0}},
        {"temperature": 1.0, "top_p": 0.01, "logit_bias": {MASK: 50.0}},
        {"temperature": 1.0, "min_p": 1.0, "logit_bias": {MASK: 50.0}},
    ):
        seen = Rig().run([Request(params(seed=1, **options), PROMPT, key=3, steps=1)], 16)[0]
        greedy = Rig().run([Request(params(), PROMPT, key=3, steps=1)], 16)[0]
        assert MASK not in seen.tokens
        if options:
            # One token is left, or none is drawn: the best that can be generated.
            assert seen.tokens == greedy.tokens


BANS: list[dict[str, Any]] = [
    {"logit_bias": {3: -math.inf}},
    {"allowed_token_ids": [1, 2, 5, 8, 13, 21]},
    {"min_tokens": 8, "stop_token_ids": [3]},
]


@pytest.mark.parametrize("ban", BANS, ids=str)
def test_growing_answers_hold_no_banned_end_token(ban: dict[str, Any]) -> None:
    """Though an answer is long enough from the start; without the ban its end tokens are put there."""
    values = numbers_of("daedal") | {"initial_length": 4.0, "end_check_tokens": 4.0, "end_threshold": 0.0}
    how: dict[str, Any] = {"algorithm": "daedal", "block_length": 8, "values": values}
    free = Request(params(logit_bias={3: 50.0}), PROMPT, key=8, **how)
    banned = replace(free, params=params(**ban))
    rig = Rig(aligned=False, tempered=False)
    assert 3 in rig.run([free], 6)[0].tokens
    assert 3 not in rig.run([banned], 4)[0].tokens


@pytest.mark.parametrize("rewrites", [False, True])
def test_no_bad_word_stands_in_the_text(rewrites: bool) -> None:
    """Words of 5 tokens, everything unmasked at once, borders included; also with rewriting."""
    how: dict[str, Any] = {"steps": 1}
    if rewrites:
        how = {
            "algorithm": "edit",
            "threshold": 0.0,
            "values": {"edit_threshold": 0.3, "max_post_steps": 6},
        }
    pool = [0, 1, 2, 3, 4]
    words = [list(w) for w in itertools.product(pool, repeat=2) if w[0] != w[1]] + [[0, 0, 0], [1, 1, 1], [9]]
    for key in range(30):
        options = params(
            allowed_token_ids=[*pool, 9, 10],
            logit_bias={10: -3.0},
            bad_words=words,
            temperature=1.0,
            seed=key,
        )
        request = Request(options, PROMPT, key=key, block_length=(2, 4, 8)[key % 3], **how)
        (answer,) = Rig().run([request], 24)
        text = answer.tokens
        for word in words:
            assert all(text[i : i + len(word)] != word for i in range(len(text))), (word, text)


def test_bad_words_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many and long words no more at a time than a fixed memory holds."""
    many = [w for w in requests() if w.params.bad_words_token_ids]
    whole = Rig().run(many[:6], 16)
    monkeypatch.setattr("vllm.v1.diffusion.sampling.bad_words.MOST_PLACES", 1)
    for answer, want in zip(Rig().run(many[:6], 16), whole, strict=True):
        assert_same(answer, want, "in parts")


def test_a_bad_word_longer_than_the_answer_costs_nothing() -> None:
    rig = Rig()
    rig.add(Request(params(bad_words=[[1, 2, 3, 4, 5]], max_tokens=4), PROMPT))
    assert not rig.sampler.logits.bad_words._words
    rig.add(Request(params(bad_words=[[1, 2, 3, 4, 5], [7, 8]], max_tokens=4), PROMPT))
    assert list(rig.sampler.logits.bad_words._words.values()) == [[[7, 8]]]


def test_bad_words_look_at_the_output_only() -> None:
    """As upstream: a prompt's tokens begin no word."""
    first = Rig().run([Request(params(), PROMPT, key=1, block_length=1)], 1)[0].tokens[0]
    options = params(bad_words=[[PROMPT[-1], first]])
    assert Rig().run([Request(options, PROMPT, key=1, block_length=1)], 1)[0].tokens == [first]


@pytest.mark.parametrize("name", ["repetition", "presence", "bad_words", "min_tokens", "bias"])
def test_after_a_preemption(name: str) -> None:
    """A request that comes back with its output goes on as if nothing had happened."""
    request = Request(params(**OPTIONS[name]), PROMPT, key=21, block_length=4)
    whole = decode(request, 18)
    rig = Rig()
    head = rig.run([request], 6)[0]
    assert len(head.tokens) == 6
    rig.add(request, output=head.tokens)
    (answer,) = [answer for _, _, answer in rig.live.values()]
    while len(answer.tokens) < 12:
        rig.step()
    assert head.tokens + answer.tokens == whole.tokens


def test_a_unmasked_token_is_not_penalised_for_itself() -> None:
    """A rewriting policy sees an unmasked position as if its own token were not there."""
    request = Request(
        params(presence_penalty=2.0, repetition_penalty=2.0, frequency_penalty=2.0),
        PROMPT,
        key=8,
        algorithm="edit",
        block_length=8,
        threshold=0.0,
        values={"edit_threshold": 0.999, "max_post_steps": 3},
    )
    rig = Rig()
    rig.add(request)
    rig.step()
    slot = next(iter(rig.live.values()))[0]
    first = rig.canvases.tokens[slot].tolist()
    seen: Any = []
    sampler: Any = rig.sampler
    statistics = sampler.statistics
    sampler.statistics = lambda logits, step: (seen.extend(logits.changed()), statistics(logits, step))[1]
    rig.step()
    for p in range(len(PROMPT), 8):
        others: list[int | None] = [*PROMPT, *first[len(PROMPT) : p], None, *first[p + 1 :]]
        want = distribution(request, model(request.key, p, 1), p, others)[first[p]]
        assert float(seen[0].logits[p, first[p]]) == pytest.approx(float(want), abs=1e-4)
