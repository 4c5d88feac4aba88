# SPDX-License-Identifier: Apache-2.0
"""What the scheduler knows of the windows of a request.

A *window* is the run of positions that a step computes for one request. The request's
``BlockGrid`` says where blocks begin and end; the mode's planner says which window comes next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from vllm.v1.diffusion.modes.grid import BlockGrid
from vllm.v1.diffusion.policies import get_policy
from vllm.v1.diffusion.request.decoding import Decoding, foreseen_steps

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.diffusion.core.scores import Scoring

DRAFT = -1
"""Stands for a canvas position in upstream's draft tokens."""


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
    grid: BlockGrid
    reserved: int = 0
    """Positions whose KV blocks the request is admitted with, if they are more than upstream asks for."""
    copy: int = 0
    """Positions from a canvas to its copy, which guidance computes with the prompt masked; 0 for none."""
    more_sequences: int = 0
    """Sequences of its window beside the first."""
    ends: frozenset[int] = frozenset()
    """Tokens that end the answer with the canvas that holds them."""
    first_alone: bool = False
    """Whether a block's first step unmasks its first position and no other."""
    windows: deque[InFlight] = field(default_factory=deque)
    block: int = -1
    """Start of the block that the last denoising window worked on."""
    step: int = 0
    """Denoising windows scheduled for that block."""
    steps: int | None = None
    """Denoising steps that it takes; None where the model decides."""
    reasoning_ended: bool | None = None
    """With a grammar: whether the prompt ends the reasoning, if that was checked."""
    denoised: int = 0
    """Denoising steps of the request whose output was processed."""
    block_denoised: int = 0
    """Those of them since a block finished."""
    scoring: Scoring | None = None
    """What is scored of the request's prompt before it is answered; None for nothing, or no more."""
    kv_blocks: tuple[int, int] | None = None
    """KV blocks that were asked for last, and how many of them were full; see ``window_kv_blocks.py``."""

    @property
    def elastic(self) -> bool:
        """Whether its policy decides how long the answer is, which is one block."""
        return get_policy(self.decoding.algorithm).elastic

    @property
    def block_length(self) -> int:
        """Tokens per block."""
        return self.grid.block_length

    def forget(self) -> None:
        """Starts over, after a preemption: the worker has lost the canvas."""
        for window in self.windows:
            window.stale = True
        self.block = -1
        self.step = 0
        self.kv_blocks = None

    def next_known(self, known: int) -> int:
        """Tokens known once the windows in flight have run, as far as certain.

        Args:
            known: Tokens known by the outputs processed so far.
        """
        if self.windows:
            last = self.windows[-1]
            if last.outcome is Outcome.FINISHES and not last.stale:
                return self.grid.end(known)
        return known

    @property
    def may_have_finished(self) -> bool:
        """Whether the window in flight finishes its block is for the model to say."""
        last = self.windows[-1] if self.windows else None
        return last is not None and not last.stale and last.outcome is Outcome.UNKNOWN

    def finished_blocks(self, known: int, emitted: int) -> int:
        """Blocks that a step has finished.

        Args:
            known: Tokens known before it.
            emitted: Tokens that it emitted, at least one.
        """
        grid = self.grid
        if grid.open_blocks == 1:
            return 1
        return (grid.begin(known + emitted) - grid.begin(known)) // grid.block_length

    def push(self, end: int, known: int, denoises: bool, computed: int | None = None) -> None:
        """Records a window that was scheduled.

        Args:
            end: End of the window.
            known: Tokens known by the outputs processed so far.
            denoises: Whether the window covers a whole block of the canvas.
            computed: End of what it computes without a gap, where that is not the whole window.
        """
        outcome = Outcome.NOTHING
        if denoises:
            known = self.next_known(known)
            if end >= self.grid.end(known):
                start = self.grid.begin(known)
                if start != self.block:
                    self.block, self.step, self.steps = start, 0, self._foreseen(known)
                self.step += 1
                outcome = self._outcome()
        self.windows.append(InFlight(end if computed is None else computed, outcome, self.block))

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
        return self.grid.computed(self.windows[-1].end, known)

    def _foreseen(self, known: int) -> int | None:
        """Steps of the block that ``known`` tokens leave open."""
        begin, end = self.grid.begin(known), self.grid.end(known)
        return foreseen_steps(self.decoding, end - known, end - begin, self.first_alone)

    def _outcome(self) -> Outcome:
        if self.steps is None:
            return Outcome.UNKNOWN
        return Outcome.FINISHES if self.step >= self.steps else Outcome.NOTHING


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
