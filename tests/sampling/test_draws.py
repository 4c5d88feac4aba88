# SPDX-License-Identifier: Apache-2.0
"""Draws follow the processed distribution and depend on nothing but the request."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.sampling.float64 import distribution
from tests.sampling.options import OPTIONS, PROMPT, params, requests
from tests.sampling.rig import MASK, Request, Rig, model

FILTERS: list[dict[str, Any]] = [
    {},
    {"min_p": 0.3},
    {"top_k": 3},
    {"top_p": 0.5},
    {"min_p": 0.1, "top_k": 6, "top_p": 0.8},
    {"min_p": 0.2, **OPTIONS["bias"], **OPTIONS["repetition"]},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_distribution(options: dict[str, Any], temperature: float) -> None:
    """500 seeds of one position: the right tokens, each as often as it should be."""
    draws, request = 500, Request(params(temperature=temperature, **options), PROMPT, key=5, block_length=1)
    x = distribution(request, model(5, len(PROMPT), 0), len(PROMPT), [*PROMPT, None])
    x[MASK] = -torch.inf
    probabilities = (x / temperature).softmax(-1)
    rig, counts = Rig(), Counter[int]()
    for first in range(0, draws, 5):
        batch = [
            replace(request, params=params(temperature=temperature, seed=first + i, **options))
            for i in range(5)
        ]
        counts.update(answer.tokens[0] for answer in rig.run(batch, 1))
    assert set(counts) <= set(probabilities.nonzero()[:, 0].tolist())
    for token in probabilities.topk(4).indices.tolist():
        p = float(probabilities[token])
        sigma = (p * (1 - p) / draws) ** 0.5
        assert abs(counts[token] / draws - p) < 4.5 * sigma + 1e-9, token


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tempered", [False, True])
def test_what_shares_the_batch_changes_nothing(dtype: torch.dtype, tempered: bool) -> None:
    """Bit for bit: tokens, confidences and log probabilities."""
    some = []
    for i, (request, options) in enumerate(zip(requests(), 6 * FILTERS, strict=False)):
        given = {"temperature": 0.8, "seed": 77 + i, "logprobs": i % 3, **options}
        some.append(replace(request, params=params(**given)))
    rig = Rig(tempered=tempered, dtype=dtype)
    for i in range(0, len(some) - 5, 5):
        batch = some[i : i + 6]
        for request, answer in zip(batch, rig.run(batch, 12), strict=True):
            (alone,) = Rig(tempered=tempered, dtype=dtype).run([request], 12)
            assert (answer.tokens, answer.steps, answer.confidence) == (
                alone.tokens,
                alone.steps,
                alone.confidence,
            )
            count = (request.params.logprobs or 0) + 1
            for ours, theirs in zip(answer.logprobs, alone.logprobs, strict=True):
                assert (ours[0][:count], ours[1][:count], ours[2]) == theirs


def test_confidence_is_that_of_the_family() -> None:
    """Of the tempered distribution or of the plain one; of what the filters leave."""
    options = {"temperature": 0.5, "seed": 3, "top_k": 4}
    request = Request(params(**options), PROMPT, key=9, block_length=1)
    x = distribution(request, model(9, len(PROMPT), 0), len(PROMPT), [*PROMPT, None])
    for tempered, scale in ((True, 0.5), (False, 1.0)):
        (answer,) = Rig(tempered=tempered).run([request], 1)
        want = (x / scale).softmax(-1)
        assert answer.confidence[0] == pytest.approx(float(want[answer.tokens[0]]), abs=1e-5)
        assert answer.entropies[0] == pytest.approx(float(-torch.special.xlogy(want, want).sum()), abs=1e-4)


def test_entropies_of_a_block_that_a_policy_redraws() -> None:
    """All of it in one step, which ends the block: each token has the entropy of its own position."""
    values = {"edit_threshold": 1.0, "max_post_steps": 0.0}
    how: dict[str, Any] = {"algorithm": "insert_delete", "threshold": 0.0, "values": values}
    (answer,) = Rig().run([Request(params(), PROMPT[:4], key=9, **how)], 4)
    logits = torch.stack([model(9, 4 + i, 0).double() for i in range(4)]).log_softmax(-1)
    assert answer.steps == [0] * 4
    want = -(logits.exp() * logits).sum(-1)
    assert answer.entropies == pytest.approx(want.tolist(), abs=1e-4)
