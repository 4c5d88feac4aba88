# SPDX-License-Identifier: Apache-2.0
"""Log probabilities are those of the step that unmasked the token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.sampling.float64 import distribution
from tests.sampling.options import PROMPT, params
from tests.sampling.rig import MASK, VOCABULARY, Answer, Request, Rig, model


def row(request: Request, answer: Answer, i: int, mode: str) -> torch.Tensor:
    """Scores of all tokens at the step that unmasked output token i, float64."""
    position = len(request.prompt) + i
    raw = model(request.key, position, answer.steps[i]).double()
    if mode.startswith("processed"):
        start = position // request.block_length * request.block_length
        known = [*request.prompt, *answer.tokens]
        block = [
            known[p]
            if p < len(request.prompt) or answer.steps[p - len(request.prompt)] < answer.steps[i]
            else None
            for p in range(start, start + request.block_length)
        ]
        raw = distribution(request, raw, position, [*known[:start], *block])
        raw = raw / (request.params.temperature or 1.0)
    return raw if mode.endswith("logits") else raw.log_softmax(-1)


@pytest.mark.parametrize("mode", ["raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"])
def test_modes(mode: str) -> None:
    options: list[dict[str, Any]] = [
        {"logprobs": 3},
        {"logprobs": 0, "temperature": 0.7, "seed": 1},
        {"logprobs": 5, "temperature": 0.7, "seed": 2, "top_k": 7, "presence_penalty": 1.0},
        {"logprob_token_ids": [7, 3, 30, 31], "repetition_penalty": 1.4},
        {},
        {"logprobs": VOCABULARY},
    ]
    requests = [
        Request(params(**some), PROMPT, key=40 + i, steps=2, block_length=4) for i, some in enumerate(options)
    ]
    for request, answer in zip(requests, Rig(mode=mode).run(requests, 10), strict=True):
        count, listed = request.params.num_logprobs, request.params.logprob_token_ids
        assert len(answer.logprobs) == (0 if count is None else len(answer.tokens))
        for i, (ids, scores, rank) in enumerate(answer.logprobs):
            assert count is not None
            want = row(request, answer, i, mode)
            allowed = want.clone()
            allowed[MASK] = -torch.inf
            assert ids[0] == answer.tokens[i]
            assert rank == int((allowed >= allowed[ids[0]]).sum())
            best = allowed.topk(min(count, VOCABULARY - 1)).indices.tolist()
            if count == VOCABULARY:  # Ids of equal score, -inf, come in any order; the mask token does not.
                assert sorted(ids[1:count]) == sorted(set(range(VOCABULARY)) - {MASK})
            else:
                assert ids[1 : count + 1] == (listed or best)[:count]
            for token, score in zip(ids[: count + 1], scores, strict=False):
                expected = float(allowed[token])
                assert score == pytest.approx(expected, abs=1e-4)


def test_tables_grow_and_shrink_while_blocks_are_open() -> None:
    """A request of another width comes and goes; the first one's rows survive."""
    rig = Rig()
    first = Request(params(logprobs=2), PROMPT, key=50, steps=4, block_length=4)
    name = rig.add(first)
    answer = rig.live[name][2]
    for key, width in ((51, VOCABULARY), (52, 1), (53, None), (54, 3), (55, 0)):
        other = rig.add(Request(params(logprobs=width), PROMPT, key=key, block_length=8))
        for _ in range(3):
            rig.step()
        rig.remove(other)
    (alone,) = Rig().run([first], len(answer.tokens))
    assert answer.tokens == alone.tokens
    assert [(ids[:3], scores[:3], rank) for ids, scores, rank in answer.logprobs] == alone.logprobs
    assert len(answer.logprobs) == len(answer.tokens) > 8


def test_a_second_look_wins_after_a_preemption() -> None:
    """The open block starts over; nothing of its first attempt is reported."""
    request = Request(params(logprobs=1), PROMPT, key=60, steps=4, block_length=8)
    rig = Rig()
    name = rig.add(request)
    rig.step()
    rig.remove(name)
    rig.add(request)
    (answer,) = [answer for _, _, answer in rig.live.values()]
    while not answer.tokens:
        rig.step()
    (alone,) = Rig().run([request], len(answer.tokens))
    assert answer.logprobs == alone.logprobs
