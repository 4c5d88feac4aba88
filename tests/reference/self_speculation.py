# SPDX-License-Identifier: Apache-2.0
"""Self-speculation (S2D2) in plain PyTorch: blocks drafted by diffusion, verified token by token.

No cache and no batch: every pass computes the whole sequence under an explicit mask. Every uniform number
is given, and what is drawn from a residual is its most probable token: the golden cases fix both so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.reference.sdar import SdarReference


@dataclass
class How:
    """How a prompt is answered; the names are those of the published code where it has one."""

    block_length: int
    uniform: float
    policy: str = "score_threshold"
    dynamic: bool = False
    coefficient: float = 0.0
    on: float = 0.0
    off: float = 0.0
    shortest: int = 1
    estimator: str = "entropy"
    sharpness: float = 1.0
    confidence: float = 0.85
    strategy: str = "low_confidence_dynamic"
    steps: int = 0
    resamples: bool = True
    causal_cache: bool = False
    causal_draft: bool = False
    edit_threshold: float | None = None
    max_post_steps: int = 16
    forgets: bool = False
    """Whether hysteresis begins anew with every block."""
    context: int = 2**62
    """A block that is not followed by room for another one is not verified."""


@dataclass
class Spoken:
    """What was generated."""

    output_ids: list[int] = field(default_factory=list)
    canvas: list[int] = field(default_factory=list)
    drafts: int = 0
    verifications: int = 0
    accepted: int = 0
    resampled: int = 0
    filled: int = 0
    unmask_step: list[int] = field(default_factory=list)
    """The draft, counted over all blocks, that each token is of."""
    unmask_forward: list[int] = field(default_factory=list)
    """The draft or verification that unmasked it."""


class SelfSpeculation:
    """A model and the loop."""

    def __init__(self, model: SdarReference) -> None:
        self.model = model

    def answer(self, prompt: list[int], gen_length: int, how: How) -> Spoken:
        """Whole blocks, cut to the length asked for."""
        length, result = how.block_length, Spoken()
        known, blocks = list(prompt), -(-(len(prompt) + gen_length) // length)
        at = [-1] * len(prompt)
        self._on = False
        for number in range(len(prompt) // length, blocks):
            given = len(known) - number * length
            block, when, by = self._block(known[: number * length], known[number * length :], how, result)
            known = known[: number * length] + block
            at += when[given:]
            result.unmask_forward += by[given:]
        result.canvas = known
        result.output_ids = known[len(prompt) :][:gen_length]
        result.unmask_step = at[len(prompt) :][:gen_length]
        result.unmask_forward = result.unmask_forward[:gen_length]
        return result

    def _block(
        self, cache: list[int], given: list[int], how: How, result: Spoken
    ) -> tuple[list[int], list[int], list[int]]:
        length, mask = how.block_length, self.model.mask_id
        steps = how.steps or length
        block = given + [mask] * (length - len(given))
        masked = [False] * len(given) + [True] * (length - len(given))
        at, by, step, post = [-1] * length, [-1] * length, 0, 0
        self._on = self._on and not how.forgets
        while True:
            p = self._draft(cache, block, masked, how).double().softmax(-1)
            choice = p.clone()
            choice[:, mask] = -1
            x = choice.argmax(-1).tolist()
            sure = [float(p[i, x[i]]) for i in range(length)]
            edits = set()
            if how.edit_threshold is not None:
                edits = {
                    i
                    for i in range(len(given), length)
                    if not masked[i] and sure[i] > how.edit_threshold and x[i] != block[i]
                }
                if not any(masked):
                    post += 1
            result.drafts += 1
            wanted = 1 if how.edit_threshold is not None else length // steps + (step < length % steps)
            wanted = max(wanted, 1)
            span: list[int] = []
            if any(masked):
                first = masked.index(True)
                last = first
                while last < length and masked[last]:
                    last += 1
                span = list(range(first, last))
            done: dict[int, int] = {}
            room = len(cache) + 2 * length <= how.context
            if span and room and self._verifies(span, p, sure, masked, how):
                draft = [x[i] if masked[i] or i in edits else block[i] for i in range(length)]
                q = self._verify(cache, draft, how).double().softmax(-1)
                result.verifications += 1
                for i in span:
                    done[i] = x[i]
                    if how.uniform < min(1.0, float(q[i, x[i]]) / sure[i]):
                        result.accepted += 1
                        continue
                    if how.resamples:
                        residual = (q[i] - p[i]).clamp(min=0)
                        done[i] = int(residual.argmax())
                        result.resampled += 1
                    break
            rest = [i for i in range(length) if masked[i] and i not in done]
            if len(done) < wanted and rest:
                count = wanted - len(done)
                best = sorted(rest, key=lambda i: (-sure[i], i))[:count]
                above = [i for i in rest if sure[i] > how.confidence]
                dynamic = how.strategy == "low_confidence_dynamic"
                chosen = above if dynamic and len(above) >= count else best
                result.filled += len(chosen)
                done |= {i: x[i] for i in chosen}
            open_ = any(masked)
            for i, token in done.items():
                block[i], masked[i], at[i] = token, False, result.drafts - 1
                by[i] = result.drafts + result.verifications - 1
            for i in edits:
                block[i] = x[i]
            step += 1
            if any(masked):
                continue
            if how.edit_threshold is None or post >= how.max_post_steps or (not open_ and not edits):
                return block, at, by

    def _verifies(
        self, span: list[int], p: torch.Tensor, sure: list[float], masked: list[bool], how: How
    ) -> bool:
        """Whether the first run of masks is verified."""
        if how.policy == "mask_span_length":
            return len(span) >= how.shortest
        expected, product = 0.0, 1.0
        for i in span:
            product *= self._alpha(p[i], how)
            expected += product
        sure_ones = sum(m and s > how.confidence for m, s in zip(masked, sure, strict=True))
        score = expected - how.coefficient * (sure_ones if how.dynamic else 1)
        if how.policy == "score_threshold":
            return score >= how.on
        if score > how.on:
            self._on = True
        elif score < how.off:
            self._on = False
        return self._on

    def _alpha(self, p: torch.Tensor, how: How) -> float:
        if how.estimator == "margin":
            top = p.topk(2).values
            return float(top[0] - top[1] > 0.05)
        entropy = -float((p * p.clamp(min=1e-300).log()).sum())
        return math.exp(-how.sharpness * entropy / math.log(len(p)))

    def _draft(self, cache: list[int], block: list[int], masked: list[bool], how: How) -> torch.Tensor:
        begin, count = len(cache), len(cache) + how.block_length
        sees = self._context(count, begin, how)
        sees[begin:, :] = True
        if how.causal_draft and any(masked):
            for i in range(masked.index(True)):
                sees[begin + i, begin + i + 1 :] = False
        return self.model.under(cache + block, torch.arange(count), sees)[begin:]

    def _verify(self, cache: list[int], draft: list[int], how: How) -> torch.Tensor:
        begin, length = len(cache), how.block_length
        count = begin + 2 * length
        sees = self._context(count, begin, how)
        for i in range(length):
            sees[begin + i, : begin + i + 1] = True
            sees[begin + length + i, : begin + i] = True
            sees[begin + length + i, begin + length + i] = True
        position = torch.cat((torch.arange(begin + length), torch.arange(begin, begin + length)))
        ids = cache + draft + [self.model.mask_id] * length
        return self.model.under(ids, position, sees)[begin + length :]

    @staticmethod
    def _context(count: int, begin: int, how: How) -> torch.Tensor:
        """What the rows before the block see; the others see nothing yet."""
        place = torch.arange(count) // (1 if how.causal_cache else how.block_length)
        sees = place[:, None] >= place[None, :]
        sees[begin:] = False
        return sees


def of_golden(params: dict[str, Any]) -> How:
    """A golden case's parameters."""
    how = How(params["block_length"], params["accept_uniform"], params["do_verify_policy"])
    how.dynamic = params.get("do_verify_score_type") == "difference_dynamic"
    how.coefficient = params.get("score_penalty_coef", 0.0)
    how.on = params.get("hysteresis_threshold_on", params.get("do_verify_score_threshold", 0.0))
    how.off = params.get("hysteresis_threshold_off", 0.0)
    how.shortest = params.get("min_ssd_span_length", 1)
    how.estimator = "margin" if "margin" in params["token_acceptance_estimator"] else "entropy"
    how.confidence = params.get("confidence_threshold", params.get("threshold", 0.0))
    how.strategy = params.get("remasking_strategy", "low_confidence_dynamic")
    how.steps = params.get("denoising_steps", 0)
    how.resamples = params.get("allow_resample", True)
    how.causal_cache, how.causal_draft = params.get("cache_ver", False), params.get("draft_ver", False)
    how.edit_threshold = params.get("editing_threshold")
    # LLaDA2's published code begins anew with every block, SDAR's with every request.
    how.forgets = how.edit_threshold is not None
    how.max_post_steps = params.get("max_post_steps", 16)
    return how
