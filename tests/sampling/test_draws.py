# SPDX-License-Identifier: Apache-2.0
"""Draws follow the processed distribution and depend on nothing but the request."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.sampling.reference_ import distribution
from tests.sampling.rig import MASK, Rig, Wish, model
from tests.sampling.test_parameters import OPTIONS, PROMPT, params, wishes

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
    draws, wish = 500, Wish(params(temperature=temperature, **options), PROMPT, key=5, block_length=1)
    x = distribution(wish, model(5, len(PROMPT), 0), len(PROMPT), [*PROMPT, None])
    x[MASK] = -torch.inf
    probabilities = (x / temperature).softmax(-1)
    rig, counts = Rig(), Counter[int]()
    for first in range(0, draws, 5):
        batch = [
            replace(wish, params=params(temperature=temperature, seed=first + i, **options)) for i in range(5)
        ]
        counts.update(told.tokens[0] for told in rig.run(batch, 1))
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
    for i, (wish, options) in enumerate(zip(wishes(), 6 * FILTERS, strict=False)):
        given = {"temperature": 0.8, "seed": 77 + i, "logprobs": i % 3, **options}
        some.append(replace(wish, params=params(**given)))
    rig = Rig(tempered=tempered, dtype=dtype)
    for i in range(0, len(some) - 5, 5):
        batch = some[i : i + 6]
        for wish, told in zip(batch, rig.run(batch, 12), strict=True):
            (alone,) = Rig(tempered=tempered, dtype=dtype).run([wish], 12)
            assert (told.tokens, told.steps, told.confidence) == (
                alone.tokens,
                alone.steps,
                alone.confidence,
            )
            count = (wish.params.logprobs or 0) + 1
            for ours, theirs in zip(told.logprobs, alone.logprobs, strict=True):
                assert (ours[0][:count], ours[1][:count], ours[2]) == theirs


def test_confidence_is_that_of_the_family() -> None:
    """Of the tempered distribution or of the plain one; of what the filters leave."""
    options = {"temperature": 0.5, "seed": 3, "top_k": 4}
    wish = Wish(params(**options), PROMPT, key=9, block_length=1)
    x = distribution(wish, model(9, len(PROMPT), 0), len(PROMPT), [*PROMPT, None])
    for tempered, scale in ((True, 0.5), (False, 1.0)):
        (told,) = Rig(tempered=tempered).run([wish], 1)
        want = (x / scale).softmax(-1)[told.tokens[0]]
        assert told.confidence[0] == pytest.approx(float(want), abs=1e-5)
