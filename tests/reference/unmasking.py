# SPDX-License-Identifier: Apache-2.0
"""Unmasking algorithms for one block, in plain Python and float64.

Each is written out from its description (dInfer, LLaDA2.1), with lists and sets for one request;
no code is shared with the policies under test, which work on batches of tensors.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field


def runs(masked: list[bool]) -> list[list[int]]:
    """Stretches of neighbouring masked positions."""
    found: list[list[int]] = []
    for i, open_ in enumerate(masked):
        if open_ and i > 0 and masked[i - 1]:
            found[-1].append(i)
        elif open_:
            found.append([i])
    return found


def best(positions: list[int], confidence: list[float]) -> int:
    """The most confident of some positions; the leftmost of equals."""
    return max(positions, key=lambda i: (confidence[i], -i))


def hierarchical(confidence: list[float], masked: list[bool], threshold: float, low: float) -> set[int]:
    """What a step of ``hierarchical`` unmasks."""
    open_ = [i for i, is_open in enumerate(masked) if is_open]
    chosen = {i for i in open_ if confidence[i] > threshold}
    for run in runs(masked):
        leader = best(run, confidence)
        if confidence[leader] > low:
            chosen.add(leader)
    return chosen | ({best(open_, confidence)} if open_ else set())


def threshold_or_best(confidence: list[float], masked: list[bool], threshold: float) -> set[int]:
    """What a step of ``threshold`` unmasks."""
    open_ = [i for i, is_open in enumerate(masked) if is_open]
    return {i for i in open_ if confidence[i] >= threshold} | {best(open_, confidence)}


@dataclass
class Credit:
    """``credit`` over the steps of one block: a dense table of every position's tokens."""

    table: dict[int, dict[int, float]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(float))
    )

    def boosted(self, logits: list[list[float]], masked: list[bool], banned: int = -1) -> list[list[float]]:
        """One step: decays the credit, credits the leaders, adds to the logits."""
        result = [list(row) for row in logits]
        for position, row in enumerate(logits):
            credit = self.table[position]
            for token in credit:
                credit[token] *= 0.8
            if masked[position]:
                leader = max((v for v in range(len(row)) if v != banned), key=lambda v: (row[v], -v))
                top = max(row)
                share = math.exp(row[leader] - top) / sum(math.exp(x - top) for x in row)
                credit[leader] += share**0.2
            for token, value in credit.items():
                result[position][token] += 0.7 * math.log(value + 1)
        return result


@dataclass
class Edit:
    """``edit`` over the steps of one block.

    Attributes:
        post_steps: Steps made since no mask was left.
    """

    threshold: float
    edit_threshold: float
    max_post_steps: int
    post_steps: int = 0

    def step(
        self,
        proposed: list[int],
        confidence: list[float],
        tokens: list[int],
        masked: list[bool],
        response: list[bool],
    ) -> tuple[set[int], set[int], bool]:
        """One step.

        Args:
            proposed: The token that each position's row proposes.
            confidence: Its probability.
            tokens: The block's tokens.
            masked: Which positions are masked.
            response: Which are no prompt tokens.

        Returns:
            Positions unmasked, positions rewritten, and whether another step follows.
        """
        open_ = [i for i, is_open in enumerate(masked) if is_open]
        unmasked = {i for i in open_ if confidence[i] > self.threshold}
        if open_ and not unmasked:
            unmasked = {best(open_, confidence)}
        rewritten = {
            i
            for i, is_open in enumerate(masked)
            if response[i]
            and not is_open
            and proposed[i] != tokens[i]
            and confidence[i] > self.edit_threshold
        }
        if not open_:
            self.post_steps += 1
        if len(unmasked) < len(open_):
            return unmasked, rewritten, True
        if not open_ and not rewritten:
            return unmasked, rewritten, False
        return unmasked, rewritten, self.post_steps < self.max_post_steps
