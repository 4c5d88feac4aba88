# SPDX-License-Identifier: Apache-2.0
"""Log probabilities and other sampling parameters, through the official client."""

from __future__ import annotations

import math
from typing import Any

from tests.server.known_answers import SOLVED, SUDOKU, chat, complete


def test_completions_with_logprobs(client: Any) -> None:
    choice = complete(client, logprobs=2).choices[0]
    scores = choice.logprobs
    # A token is a character; the end token has no text.
    assert "".join(scores.tokens[: len(SOLVED)]) == SOLVED == choice.text
    assert len(scores.token_logprobs) == len(scores.top_logprobs) == len(SOLVED) + 1
    for token, logprob, best in zip(scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True):
        assert -1e-2 < logprob <= 0  # the model is sure of this Sudoku
        assert 2 <= len(best) <= 3
        assert max(best, key=best.get) == token


def test_a_stream_carries_its_logprobs(client: Any) -> None:
    whole = complete(client, logprobs=1).choices[0].logprobs
    tokens, logprobs = [], []
    for chunk in complete(client, logprobs=1, stream=True):
        for choice in chunk.choices:
            if choice.logprobs is not None:
                tokens += choice.logprobs.tokens
                logprobs += choice.logprobs.token_logprobs
    assert tokens == whole.tokens
    assert logprobs == whole.token_logprobs


def test_chat_with_top_logprobs(client: Any) -> None:
    choice = chat(client, logprobs=True, top_logprobs=3, temperature=0).choices[0]
    entries = choice.logprobs.content
    assert "".join(e.token for e in entries).startswith(choice.message.content)
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert sum(math.exp(best.logprob) for best in entry.top_logprobs) <= 1 + 1e-4
        assert entry.logprob <= max(best.logprob for best in entry.top_logprobs) + 1e-6


def test_parameters_change_the_text(client: Any) -> None:
    digits = [ord(c) for c in "1234"]
    only = complete(client, allowed_token_ids=digits, max_tokens=12).choices[0]
    assert len(only.text) == 12
    assert set(only.text) <= set("1234")
    biased = complete(client, logit_bias={str(ord("4")): 100}, max_tokens=6).choices[0]
    assert biased.text == "444444"
    without = complete(client, bad_words=["14", "23"], max_tokens=19).choices[0].text
    assert "14" not in without
    assert "23" not in without
    assert complete(client, min_tokens=24).usage.completion_tokens >= 24


def test_a_harness_sends_temperature_0_with_a_seed(client: Any) -> None:
    answer = complete(client, temperature=0, seed=1234, logprobs=0)
    assert answer.choices[0].text == SOLVED
    assert complete(client, prompt=[SUDOKU, SUDOKU], temperature=0, seed=5).choices[1].text == SOLVED
