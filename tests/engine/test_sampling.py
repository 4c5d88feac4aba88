# SPDX-License-Identifier: Apache-2.0
"""Temperature, top-k, top-p and seeds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from tests.engine.cases import Case, random_prompt, reference, run

SAMPLED = Case(
    random_prompt(33, 8), 24, "low_confidence_dynamic", 8, threshold=0.5,
    temperature=0.9, seed=5,
)  # fmt: skip


def ids(llm: Any, cases: list[Case]) -> list[list[int]]:
    return [r["token_ids"] for r in run(llm, cases)]


def test_a_seed_repeats_whatever_shares_the_batch(engine: Any) -> None:
    alone = ids(engine, [SAMPLED])[0]
    others = [replace(SAMPLED, prompt=random_prompt(9, i), seed=None) for i in range(5)]
    crowd = ids(engine, [*others, SAMPLED, *others[:3], SAMPLED])
    assert crowd[5] == alone
    assert crowd[9] == alone
    assert ids(engine, [replace(SAMPLED, seed=6)])[0] != alone


def test_requests_without_a_seed_differ(engine: Any) -> None:
    draws = ids(engine, [replace(SAMPLED, seed=None)] * 4)
    assert len({tuple(d) for d in draws}) > 1


def test_top_k_1_is_greedy(engine: Any) -> None:
    greedy = replace(SAMPLED, algorithm="sequential", threshold=None, temperature=0.0)
    drawn = replace(greedy, temperature=1.3, top_k=1)
    assert ids(engine, [drawn]) == ids(engine, [greedy])


def test_draws_follow_the_filtered_distribution(engine: Any) -> None:
    """The first token of one-token blocks, against the reference's probabilities."""
    prompt = random_prompt(7, 9)
    base = Case(prompt, 1, "sequential", 1, temperature=0.7)
    logits = reference().logits([*prompt, reference().mask_id], 1)[-1].double() / 0.7
    logits[reference().mask_id] = -torch.inf
    for filters in ({}, {"top_k": 4}, {"top_p": 0.6}):
        probabilities = filtered(logits, **filters).softmax(-1)
        draws = 400
        counts = Counter(
            tokens[0] for tokens in ids(engine, [replace(base, seed=i, **filters) for i in range(draws)])
        )
        allowed = set(probabilities.nonzero()[:, 0].tolist())
        assert set(counts) <= allowed
        for token in probabilities.topk(3).indices.tolist():
            p = float(probabilities[token])
            sigma = (p * (1 - p) / draws) ** 0.5
            assert abs(counts[token] / draws - p) < 5 * sigma + 1e-9, (filters, token)


def filtered(logits: torch.Tensor, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    order = logits.argsort(descending=True)
    kept = torch.full_like(logits, -torch.inf)
    cumulative = logits[order].softmax(-1).cumsum(-1)
    count = top_k or int((cumulative < top_p).sum()) + 1
    kept[order[:count]] = logits[order[:count]]
    return kept


def test_n_completions(engine: Any) -> None:
    params = replace(SAMPLED, seed=11).sampling_params()
    params.n = 3
    outputs = engine.generate([{"prompt_token_ids": list(SAMPLED.prompt)}], params, use_tqdm=False)[0].outputs
    assert len({tuple(o.token_ids) for o in outputs}) > 1
