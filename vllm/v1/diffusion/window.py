# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of block-causal windows, shared by scheduler and worker.

A *window* is the run of positions that a step computes for one request. Its
start is always a multiple of the request's block length, since a position's
keys and values depend on all of its block.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from vllm.v1.diffusion.params import Decoding
from vllm.v1.diffusion.policies import get_policy


def block_start(position: int, block_length: int) -> int:
    """First position of the block that holds ``position``."""
    return position // block_length * block_length


def computed_after(window_end: int, known: int, block_length: int) -> int:
    """Positions whose keys and values are final after a window was run.

    Whole blocks of tokens that were known *before* the step are final. A block
    that held masks is not, even if the step settled it: its tokens were not in
    the window.

    Args:
        window_end: End of the window.
        known: Tokens known when the step began (prompt and output).
        block_length: Tokens a block.
    """
    return block_start(min(window_end, known), block_length)


def foreseen_steps(decoding: Decoding, masked: int) -> int | None:
    """Denoising steps that a block takes, where that does not depend on the model.

    Args:
        decoding: How the request is denoised.
        masked: Masks that the block begins with.
    """
    policy = get_policy(decoding.algorithm)
    total = policy.steps_left(masked, 0, decoding.steps, decoding.block_length)
    if total is None or not decoding.foreseeable:
        return None
    return min(total, decoding.max_steps or total)


class Outcome(Enum):
    """What is known in advance of a scheduled window."""

    NOTHING = "it settles no block"
    SETTLES = "it settles a block"
    UNKNOWN = "the model decides"


@dataclass
class InFlight:
    """A window whose output has not been processed yet."""

    end: int
    outcome: Outcome
    stale: bool = False
    """Whether the request was preempted since."""


@dataclass
class RequestPlan:
    """What the scheduler remembers of one request between steps."""

    decoding: Decoding
    windows: deque[InFlight] = field(default_factory=deque)
    block: int = -1
    """Start of the block that the last denoising window worked on."""
    step: int = 0
    """Denoising windows scheduled for that block."""
    reasoning_ended: bool | None = None
    """With a grammar: whether the prompt ends the reasoning, if anybody looked."""
    denoised: int = 0
    """Denoising steps of the request whose output was processed."""
    block_denoised: int = 0
    """Those of them since a block settled."""

    @property
    def block_length(self) -> int:
        """Tokens a block."""
        return self.decoding.block_length

    def forget(self) -> None:
        """Starts over, after a preemption: the worker has lost the canvas."""
        for window in self.windows:
            window.stale = True
        self.block = -1
        self.step = 0

    def next_known(self, known: int) -> int:
        """Tokens known once the windows in flight have run, as far as certain.

        Args:
            known: Tokens known by the outputs processed so far.
        """
        last = self.windows[-1] if self.windows else None
        if last and not last.stale and last.outcome is Outcome.SETTLES:
            return self.window_end(known)
        return known

    @property
    def may_have_settled(self) -> bool:
        """Whether the window in flight settles its block is for the model to say."""
        last = self.windows[-1] if self.windows else None
        return last is not None and not last.stale and last.outcome is Outcome.UNKNOWN

    def window_end(self, known: int) -> int:
        """End of the block that follows ``known`` tokens."""
        return block_start(known, self.block_length) + self.block_length

    def push(self, end: int, known: int, denoises: bool) -> None:
        """Records a window that was scheduled.

        Args:
            end: End of the window.
            known: Tokens known by the outputs processed so far.
            denoises: Whether the window covers a whole block of the canvas.
        """
        outcome = Outcome.NOTHING
        if denoises:
            known = self.next_known(known)
            start = block_start(known, self.block_length)
            if end >= start + self.block_length:
                if start != self.block:
                    self.block, self.step = start, 0
                self.step += 1
                outcome = self._outcome(start + self.block_length - known)
        self.windows.append(InFlight(end, outcome))

    def pop(self, known: int) -> int | None:
        """Forgets the oldest window, whose output has just been processed.

        Args:
            known: Tokens known with that output.

        Returns:
            Computed positions after the window still in flight, if there is
            one, now that what it began with is known.
        """
        self.windows.popleft()
        if not self.windows or self.windows[-1].stale:
            return None
        return computed_after(self.windows[-1].end, known, self.block_length)

    def _outcome(self, masked: int) -> Outcome:
        total = foreseen_steps(self.decoding, masked)
        if total is None:
            return Outcome.UNKNOWN
        return Outcome.SETTLES if self.step >= total else Outcome.NOTHING
