# SPDX-License-Identifier: Apache-2.0
"""What is reported of a request's denoising, in Python and in a response's choices."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from vllm.v1.diffusion.message.candidates import StepCandidates
from vllm.v1.diffusion.message.canvas import CanvasStep


@dataclass(frozen=True)
class Likelihood:
    """How the log probabilities of a prompt were estimated.

    Attributes:
        estimator: ``left_to_right``, ``one_step`` or ``monte_carlo``.
        score_from: Index of the first token of the prompt that has one.
        steps: Forward passes that they took.
        samples: Samples of ``monte_carlo``, and the seed of its draws; None for the others.
        seed: See ``samples``.
    """

    estimator: str
    score_from: int
    steps: int
    samples: int | None = None
    seed: int | None = None


@dataclass
class DenoisingReport:
    """A request's denoising so far.

    The engine core sends what is new with every block; the front end adds it up. A block that a
    preemption interrupts is denoised again, and counts with the steps that were lost.

    Attributes:
        steps: Denoising steps, each a forward of the request's open block.
        tokens_per_forward: Tokens of the output by ``steps``.
        steps_per_block: Steps of each block that finished; 0 for one that left with the block before it.
        trace: Of each token of the output, the step that unmasked it, from 0, and its probability in
            that step; -1 for a token that a template gave. Only if the request asks, by
            ``diffusion_trace``. In a stream of deltas, of the tokens that are new.
        entropies: Of each token of ``trace``, the entropy in nats of the distribution that its
            probability is of; 0 for a token that a template or a grammar gave.
        candidates: Of each token of ``trace``, the most probable tokens in each step in which its position
            was open; none for a token that a template gave. Only if the request asks, by
            ``diffusion_trace_top_k``.
        likelihood: How the prompt's log probabilities were estimated; their steps are not in ``steps``.
            None where none were asked for.
        canvases: The open block behind each step since the last output, on the way to the front end only.
            ``frontend/canvases.py`` takes them from here.
    """

    steps: int = 0
    tokens_per_forward: float | None = None
    steps_per_block: list[int] = field(default_factory=list)
    trace: list[tuple[int, float]] | None = None
    entropies: list[float] | None = None
    candidates: list[list[StepCandidates]] | None = None
    likelihood: Likelihood | None = None
    canvases: list[CanvasStep] | None = None

    def of_output(self, tokens: int, new: int) -> DenoisingReport:
        """What one output says.

        Args:
            tokens: Tokens of the request so far.
            new: How many of them, the last ones, are in the output.
        """
        return replace(
            self,
            tokens_per_forward=round(tokens / self.steps, 4) if self.steps else None,
            steps_per_block=list(self.steps_per_block),
            trace=self.trace and (self.trace[tokens - new : tokens] or None),
            entropies=self.entropies and (self.entropies[tokens - new : tokens] or None),
            candidates=self.candidates and (self.candidates[tokens - new : tokens] or None),
        )


def take_report(state: Any, output: Any) -> None:
    """Notes what the engine core reports with an output, before its log probabilities are read.

    Args:
        state: Upstream's ``RequestState`` of the output processor, changed.
        output: Upstream's ``EngineCoreOutput``.
    """
    new: DenoisingReport | None = output.diffusion
    if new is not None and new.likelihood is not None:
        _leave_out(state, new.likelihood)
    state.diffusion = added(state.diffusion, new)


def added(so_far: DenoisingReport | None, new: DenoisingReport | None) -> DenoisingReport | None:
    """Adds what the engine core reports of the last block to its reports before; None for nothing."""
    if so_far is None or new is None:
        return so_far or new
    so_far.steps += new.steps
    so_far.steps_per_block += new.steps_per_block
    if new.trace:
        so_far.trace = so_far.trace or []
        so_far.trace += new.trace
        so_far.entropies = so_far.entropies or []
        so_far.entropies += new.entropies or ()
    if new.candidates:
        so_far.candidates = so_far.candidates or []
        so_far.candidates += new.candidates
    return so_far


def joined(before: DenoisingReport | None, later: DenoisingReport | None) -> DenoisingReport | None:
    """What two deltas of one output's stream say as one."""
    if before is None or later is None:
        return later or before
    return replace(
        later,
        trace=[*(before.trace or ()), *(later.trace or ())] or None,
        entropies=[*(before.entropies or ()), *(later.entropies or ())] or None,
        candidates=[*(before.candidates or ()), *(later.candidates or ())] or None,
    )


def _leave_out(state: Any, likelihood: Likelihood) -> None:
    """Gives the tokens of a prompt that were not scored no log probabilities.

    Args:
        state: Upstream's ``RequestState`` of the output processor, which has no log probabilities yet but
            that of the first token, which is None.
        likelihood: How those of the others were estimated.
    """
    scores = state.logprobs_processor.prompt_logprobs
    for _ in range(1, likelihood.score_from):
        scores.append(None)
