# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of windows, shared by scheduler and worker.

A *window* is the run of positions that a step computes for one request. Of a
block-causal model its start is always a multiple of the request's block length,
since a position's keys and values depend on all of its block. Of a bidirectional
model nothing is computed for good: ``CanvasPlan``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from vllm.v1.diffusion.request.decoding import CACHED, Decoding, foreseen_steps

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

DRAFT = -1
"""Stands for a canvas position among upstream's draft tokens."""


def block_start(position: int, block_length: int) -> int:
    """First position of the block that holds ``position``."""
    return position // block_length * block_length


def computed_after(window_end: int, known: int, block_length: int) -> int:
    """Positions whose keys and values are final after a window was run.

    Whole blocks of tokens that were known *before* the step are final. A block
    that held masks is not, even if the step unmasked it: its tokens were not in
    the window.

    Args:
        window_end: End of the window.
        known: Tokens known when the step began (prompt and output).
        block_length: Tokens a block.
    """
    return min(window_end, known) // block_length * block_length


class Outcome(Enum):
    """What is known in advance of a scheduled window."""

    NOTHING = "it finishes no block"
    FINISHES = "it finishes a block"
    UNKNOWN = "the model decides"


@dataclass(slots=True)
class InFlight:
    """A window whose output has not been processed yet."""

    end: int
    outcome: Outcome
    block: int = -1
    """Start of the block that it denoises, as far as is known when it is planned."""
    stale: bool = False
    """Whether the request was preempted since."""


@dataclass(slots=True)
class RequestPlan:
    """What the scheduler remembers of one request between steps."""

    decoding: Decoding
    block_length: int = field(init=False)
    """Tokens a block."""
    windows: deque[InFlight] = field(default_factory=deque)
    block: int = -1
    """Start of the block that the last denoising window worked on."""
    step: int = 0
    """Denoising windows scheduled for that block."""
    steps: int | None = None
    """Denoising steps that it takes; None where the model decides."""
    reasoning_ended: bool | None = None
    """With a grammar: whether the prompt ends the reasoning, if anybody looked."""
    denoised: int = 0
    """Denoising steps of the request whose output was processed."""
    block_denoised: int = 0
    """Those of them since a block finished."""
    held: tuple[int, int] | None = None
    """Cache blocks that were asked for last, and how many of them were full; see ``held_slots.py``."""

    def __post_init__(self) -> None:
        """Fills in what follows from the decoding."""
        self.block_length = self.decoding.block_length

    def forget(self) -> None:
        """Starts over, after a preemption: the worker has lost the canvas."""
        for window in self.windows:
            window.stale = True
        self.block = -1
        self.step = 0
        self.held = None

    def next_known(self, known: int) -> int:
        """Tokens known once the windows in flight have run, as far as certain.

        Args:
            known: Tokens known by the outputs processed so far.
        """
        if self.windows:
            last = self.windows[-1]
            if last.outcome is Outcome.FINISHES and not last.stale:
                return self.window_end(known)
        return known

    def begin(self, known: int) -> int:
        """Start of the block that follows ``known`` tokens, or that they end in."""
        return block_start(known, self.block_length)

    @property
    def may_have_finished(self) -> bool:
        """Whether the window in flight finishes its block is for the model to say."""
        last = self.windows[-1] if self.windows else None
        return last is not None and not last.stale and last.outcome is Outcome.UNKNOWN

    def window_end(self, known: int) -> int:
        """End of the block that follows ``known`` tokens."""
        return (known // self.block_length + 1) * self.block_length

    def computed(self, end: int, known: int) -> int:
        """Positions computed for good after a window; see :func:`computed_after`."""
        return computed_after(end, known, self.block_length)

    def denoised_nothing(self, window: InFlight, known: int) -> bool:
        """Whether a window whose block had finished before it ran did no more than commit it.

        Args:
            window: The window.
            known: Tokens known by the outputs before its own.
        """
        return window.end <= known // self.block_length * self.block_length

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
            if end >= self.window_end(known):
                start = self.begin(known)
                if start != self.block:
                    self.block, self.step, self.steps = start, 0, self._foreseen(known)
                self.step += 1
                outcome = self._outcome()
        self.windows.append(InFlight(end, outcome, self.block))

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
        return self.computed(self.windows[-1].end, known)

    def _foreseen(self, known: int) -> int | None:
        """Steps of the block that ``known`` tokens leave open."""
        return foreseen_steps(self.decoding, self.window_end(known) - known)

    def _outcome(self) -> Outcome:
        if self.steps is None:
            return Outcome.UNKNOWN
        return Outcome.FINISHES if self.step >= self.steps else Outcome.NOTHING


@dataclass(kw_only=True, slots=True)
class CanvasPlan(RequestPlan):
    """The same of a bidirectional model, whose blocks begin where the prompt ends.

    A window begins at 0, or at its block if the cache mode keeps what is before it. Planned
    while a step is in flight that may finish the block, it is for the same block again: if that
    has finished, the device makes nothing of it (``cache`` ``prefix`` and ``dual``), or denoises
    the next block, whose window is the same (``none``).
    """

    canvas_end: int
    """Where the answer ends."""
    first_alone: bool = False
    """Whether a block's first step unmasks its first position and no other."""

    def begin(self, known: int) -> int:
        """See :meth:`RequestPlan.begin`: blocks are known as a whole or not at all."""
        return known

    def window_end(self, known: int) -> int:
        """End of the block that follows ``known`` tokens."""
        return min(known + self.block_length, self.canvas_end)

    def computed(self, end: int, known: int) -> int:
        """Nothing is computed for good."""
        return 0

    def denoised_nothing(self, window: InFlight, known: int) -> bool:
        """See :meth:`RequestPlan.denoised_nothing`."""
        return self.decoding.cache in CACHED and window.block != known

    def next_window(self, known: int) -> tuple[int, int] | None:
        """Where the next window begins and ends; None if the one in flight has to come first.

        Args:
            known: Tokens known by the outputs processed so far.
        """
        unsure = self.may_have_finished
        known = self.next_known(known)
        block_end = self.window_end(known)
        if known >= self.canvas_end:
            return None
        other_length = self.window_end(block_end) - block_end != block_end - known
        if unsure and self.decoding.constrained and other_length:
            # A grammar reads all rows of a step: they must be those of its block.
            return None
        if self.decoding.cache not in CACHED or self.block != known:
            return 0, self.canvas_end
        return known, block_end if self.decoding.cache == "dual" else self.canvas_end

    def _foreseen(self, known: int) -> int | None:
        length = self.window_end(known) - known
        return foreseen_steps(self.decoding, length, length, self.first_alone)


def set_window(output: SchedulerOutput, request_id: str, length: int, rows: int) -> None:
    """Changes one request's share of a step.

    Args:
        output: The step.
        request_id: The request.
        length: Tokens to compute.
        rows: Canvas positions that want logits: one row for each.
    """
    scheduled, drafts = output.num_scheduled_tokens, output.scheduled_spec_decode_tokens
    if (before := scheduled[request_id]) != length:
        output.total_num_scheduled_tokens += length - before
        scheduled[request_id] = length
    if not rows:
        drafts.pop(request_id, None)
    elif len(drafts.get(request_id, ())) != rows:
        drafts[request_id] = [DRAFT] * rows
