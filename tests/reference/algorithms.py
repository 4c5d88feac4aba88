# SPDX-License-Identifier: Apache-2.0
"""Decodes one greedy request with any algorithm and early exit, block by block.

The model is a plain reference (``sdar.py``, ``moe.py``); an algorithm is what
``unmasking.py`` says a step does. Nothing is cached, nothing is batched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tests.reference import unmasking
from tests.reference.sdar import Decoded, SdarReference


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a request asks for; the names are those of ``DiffusionParams``."""

    prompt: tuple[int, ...]
    max_tokens: int
    algorithm: str
    block_length: int
    steps: int
    threshold: float = 0.85
    factor: float = 1.0
    low_threshold: float = 0.4
    edit_threshold: float = 0.9
    max_post_steps: int = 16
    max_steps: int | None = None
    exit_threshold: float | None = None
    eos_early_stop: bool = False
    stop_token_ids: tuple[int, ...] = ()


def decode(model: SdarReference, request: Request) -> Decoded:
    """Decodes a request; stops behind a block that holds a stop token."""
    prompt, length = list(request.prompt), request.block_length
    known, unmasked_at, total = list(prompt), [], 0
    while len(known) < len(prompt) + request.max_tokens:
        start = len(known) // length * length
        block = _Block(model, request, known[:start], known[start:], total)
        block.run()
        total = block.total
        unmasked_at += block.at[len(known) - start :]
        known = known[:start] + block.tokens
        if set(known[len(prompt) :]) & set(request.stop_token_ids):
            break
    output = known[len(prompt) :][: request.max_tokens]
    for i, token in enumerate(output):
        if token in request.stop_token_ids:
            output = output[: i + 1]
            break
    return Decoded(output, total, unmasked_at[: len(output)])


class _Block:
    """One block of a request, and its steps."""

    def __init__(
        self, model: SdarReference, request: Request, before: list[int], known: list[int], total: int
    ) -> None:
        self.model, self.request, self.before, self.total = model, request, before, total
        width = request.block_length
        self.tokens = known + [model.mask_id] * (width - len(known))
        self.masked = [i >= len(known) for i in range(width)]
        self.response = list(self.masked)
        self.at = [-1] * width
        self.credit = unmasking.Credit()
        self.edit = unmasking.Edit(request.threshold, request.edit_threshold, request.max_post_steps)

    def run(self) -> None:
        """Steps until the block is done."""
        request, step = self.request, 0
        while True:
            capped = request.max_steps is not None and step + 1 >= request.max_steps
            more = self._step(step, capped)
            step += 1
            self.total += 1
            if capped or not more or (request.eos_early_stop and self._holds_end()):
                return

    def _step(self, step: int, capped: bool) -> bool:
        """Makes a step; whether the algorithm wants another."""
        request = self.request
        logits = self.model.logits(self.before + self.tokens, request.block_length)[len(self.before) :]
        if request.algorithm == "credit":
            rows = self.credit.boosted(logits.tolist(), self.masked, self.model.mask_id)
            logits = torch.tensor(rows, dtype=torch.float64)
        probability = logits.double().softmax(-1)
        choosable = logits.double().clone()
        choosable[:, self.model.mask_id] = -torch.inf
        token = choosable.argmax(-1)
        confidence = probability.gather(1, token[:, None])[:, 0].tolist()
        proposed = token.tolist()
        open_ = [i for i, is_open in enumerate(self.masked) if is_open]
        unmasked, rewritten, more = self._chosen(step, proposed, confidence, open_)
        certain = request.exit_threshold is not None and all(
            confidence[i] >= request.exit_threshold for i in open_
        )
        if capped or certain:
            unmasked = set(open_)
        for i in unmasked:
            self.masked[i] = False
            self.at[i] = self.total
        for i in unmasked | rewritten:
            self.tokens[i] = proposed[i]
        if request.algorithm == "edit":
            # A block filled at once may still be rewritten.
            return more if not open_ or not certain else self.edit.max_post_steps > 0
        return any(self.masked)

    def _chosen(
        self, step: int, proposed: list[int], confidence: list[float], open_: list[int]
    ) -> tuple[set[int], set[int], bool]:
        request = self.request
        count = max(1, request.block_length // request.steps + (step < request.block_length % request.steps))
        by_confidence = sorted(open_, key=lambda i: (-confidence[i], i))
        match request.algorithm:
            case "edit":
                return self.edit.step(proposed, confidence, self.tokens, self.masked, self.response)
            case "hierarchical":
                chosen = unmasking.hierarchical(
                    confidence, self.masked, request.threshold, request.low_threshold
                )
            case "credit" | "threshold":
                chosen = unmasking.threshold_or_best(confidence, self.masked, request.threshold)
            case "low_confidence_static":
                chosen = set(by_confidence[:count])
            case "sequential":
                chosen = set(open_[:count])
            case "low_confidence_dynamic":
                above = {i for i in open_ if confidence[i] > request.threshold}
                chosen = above if len(above) >= count else set(by_confidence[:count])
            case other:
                raise AssertionError(f"no reference of {other}")
        return chosen, set(), True

    def _holds_end(self) -> bool:
        """Whether a stop token of the response has no mask before it."""
        for token, is_open, new in zip(self.tokens, self.masked, self.response, strict=True):
            if is_open:
                return False
            if new and token in self.request.stop_token_ids:
                return True
        return False
