# SPDX-License-Identifier: Apache-2.0
"""Runs problems through an engine and checks the answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.v1.diffusion.request.params import DiffusionParams


class Problem(Protocol):
    """A prompt whose answers can be checked."""

    @property
    def prompt(self) -> str:
        """What the model reads."""

    @property
    def is_right(self) -> Any:
        """Says whether a text answers the prompt."""


@dataclass(frozen=True)
class Score:
    """Problems of one kind under one way of decoding.

    ``tokens`` counts the end token; ``forwards`` are the requests' denoising steps; ``seconds`` is the time
    of all of them, prompts included.
    """

    problems: int
    right: int
    tokens: int
    forwards: int
    seconds: float = 0.0

    def __add__(self, other: Score) -> Score:
        return Score(
            self.problems + other.problems,
            self.right + other.right,
            self.tokens + other.tokens,
            self.forwards + other.forwards,
            self.seconds + other.seconds,
        )

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.1f} % ({self.tokens_per_forward:.1f})"

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.problems

    @property
    def tokens_per_forward(self) -> float:
        """Tokens of the answers by their denoising steps."""
        return self.tokens / self.forwards

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the answers in the time of the run."""
        return self.tokens / self.seconds


def solve(
    llm: LLM, problems: Sequence[Problem], how: DiffusionParams, max_tokens: int, batch: int | None = None
) -> Score:
    """Runs problems, everything but ``how`` as the model's defaults say.

    Args:
        llm: The engine.
        problems: What to solve.
        how: The way of decoding.
        max_tokens: Tokens of an answer at most.
        batch: Requests given at a time, the next ones when all have ended; None for all at once.
    """
    params = llm.get_default_sampling_params()
    params.max_tokens = max_tokens
    params.extra_args = how.to_extra_args()
    size = batch or len(problems)
    begun = time.perf_counter()
    done: list[Any] = []
    for start in range(0, len(problems), size):
        prompts = [problem.prompt for problem in problems[start : start + size]]
        done += [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]
    seconds = time.perf_counter() - begun
    return Score(
        len(problems),
        sum(problem.is_right(answer.text) for problem, answer in zip(problems, done, strict=True)),
        sum(len(answer.token_ids) for answer in done),
        sum(answer.diffusion.steps for answer in done),
        seconds,
    )
