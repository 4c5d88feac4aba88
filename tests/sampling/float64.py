# SPDX-License-Identifier: Apache-2.0
"""Sampling parameters on a canvas in float64, one request, one position at a time."""

from __future__ import annotations

import math
from collections import Counter

import torch

from tests.sampling.rig import MASK, VOCABULARY, Answer, Request, model


def distribution(
    request: Request, raw: torch.Tensor, position: int, sequence: list[int | None]
) -> torch.Tensor:
    """Logits of a position after all that the request asks for, float64.

    Args:
        request: The request.
        raw: The model's logits.
        position: The position.
        sequence: Tokens of all positions, None where they are masked.
    """
    params, prompt = request.params, len(request.prompt)
    x = raw.double().clone()
    if params.allowed_token_ids is not None:
        for token in set(range(VOCABULARY)) - set(params.allowed_token_ids):
            x[token] = -math.inf
    for token, bias in (params.logit_bias or {}).items():
        x[token] += bias
    if position < prompt + params.min_tokens:
        for token in params.all_stop_token_ids:
            x[token] = -math.inf
    counts = Counter(t for t in sequence[prompt:] if t is not None)
    for token in set(counts) | set(request.prompt):
        x[token] *= 1 / params.repetition_penalty if x[token] > 0 else params.repetition_penalty
    for token, count in counts.items():
        x[token] -= params.frequency_penalty * count + params.presence_penalty
    for word in params.bad_words_token_ids or ():
        for j, token in enumerate(word):
            places = [(position - j + i, word[i]) for i in range(len(word)) if i != j]
            if all(prompt <= p < len(sequence) and sequence[p] == t for p, t in places):
                x[token] = -math.inf
    if params.min_p or params.top_k > 0 or params.top_p < 1:
        p = (x / (params.temperature or 1)).clone()
        p[MASK] = -math.inf
        p = p.softmax(-1)
        kept = p >= params.min_p * p.max()
        order = torch.where(kept, p, -1.0).argsort(descending=True)[: int(kept.sum())]
        order = order[: params.top_k] if params.top_k > 0 else order
        q = p[order] / p[order].sum()
        order = order[: int((q.cumsum(0) - q < params.top_p).sum())]
        dropped = torch.ones(VOCABULARY, dtype=torch.bool)
        dropped[order] = False
        x[dropped] = -math.inf
    return x


def bad_word(request: Request, sequence: list[int | None], fresh: set[int]) -> list[list[int]]:
    """Fresh positions of each bad word that stands in the output."""
    found = []
    for word in request.params.bad_words_token_ids or ():
        for first in range(len(request.prompt), len(sequence) - len(word) + 1):
            span = range(first, first + len(word))
            if [sequence[p] for p in span] == word:
                found.append([p for p in span if p in fresh])
    return found


def decode(request: Request, num_tokens: int, aligned: bool = True) -> Answer:
    """Greedy decoding of a request, ``low_confidence_static`` or ``threshold``."""
    assert request.params.temperature == 0
    answer = Answer()
    known, size = list(request.prompt), request.block_length
    while len(answer.tokens) < num_tokens:
        start = len(known) // size * size if aligned else len(known)
        sequence: list[int | None] = [*known, *[None] * (start + size - len(known))]
        step, unmasked = 0, {}
        while None in sequence:
            rows = {}
            for p in (p for p, t in enumerate(sequence) if t is None):
                x = distribution(request, model(request.key, p, step), p, sequence)
                probabilities = x.softmax(-1)
                x[MASK] = -math.inf
                token = int(x.argmax())
                entropy = float(-torch.special.xlogy(probabilities, probabilities).sum())
                rows[p] = (float(probabilities[token]), -p, token, entropy)
            best = sorted(rows, key=lambda p: rows[p], reverse=True)
            quota = max(1, size // request.steps + (step < size % request.steps))
            if request.algorithm == "threshold":
                quota = max(1, sum(rows[p][0] >= request.threshold for p in best))
            chosen = best[:quota]
            for p in chosen:
                sequence[p] = rows[p][2]
            for fresh in bad_word(request, sequence, set(chosen)):
                assert len(fresh) > 1, "a bad word should have been banned"
                sequence[min(fresh, key=lambda p: rows[p])] = None
            for p in chosen:
                if sequence[p] is not None:
                    unmasked[p] = (step, rows[p][0], rows[p][3])
            step += 1
        fresh_tokens = [t for t in sequence[len(known) :] if t is not None]
        answer.tokens += fresh_tokens
        answer.steps += [unmasked[p][0] for p in range(len(known), len(sequence))]
        answer.confidence += [unmasked[p][1] for p in range(len(known), len(sequence))]
        answer.entropies += [unmasked[p][2] for p in range(len(known), len(sequence))]
        known += fresh_tokens
    return answer
