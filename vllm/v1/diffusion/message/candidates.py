# SPDX-License-Identifier: Apache-2.0
"""What a step would have written at an open position, on its way from the worker to a report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CODES = 4
"""Fields of a trace's row before its candidates: those of ``StepOutputs.trace``."""


@dataclass
class StepCandidates:
    """The most probable tokens of one position in one denoising step.

    Attributes:
        step: The step, counted from 0 at the beginning of the request.
        ids: The tokens, the most probable first.
        logprobs: Their log probabilities, of the model's logits as they are.
    """

    step: int
    ids: list[int]
    logprobs: list[float]


def step_candidates(rows: np.ndarray, step: int, count: int) -> dict[int, StepCandidates]:
    """Reads a request's rows of ``ModelRunnerOutput.unmask_trace``.

    Args:
        rows: float32 ``[W, CODES + 2 K]``: behind the trace's fields K ids, then their log probabilities; NaN
            where the position was not open.
        step: The step.
        count: How many the request asks for, K at most.

    Returns:
        By column, of the positions that were open. A token without probability is none.
    """
    ids, logprobs = np.split(rows[:, CODES:], 2, axis=1)
    found = {}
    for column in np.flatnonzero(~np.isnan(ids[:, 0])).tolist():
        possible = int(np.isfinite(logprobs[column, :count]).sum())
        tokens = ids[column, :possible].astype(np.int64)
        found[column] = StepCandidates(step, tokens.tolist(), logprobs[column, :possible].tolist())
    return found
