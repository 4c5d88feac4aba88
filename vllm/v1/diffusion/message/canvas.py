# SPDX-License-Identifier: Apache-2.0
"""An open block as a step leaves it, on its way from the worker to a stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MASK = -1
"""Stands for the mask token at an open position."""

OPEN = -2
"""An open position is sent as ``OPEN - token``, which is negative, one that is not as its token."""

_CODE = 3
"""The field of a trace's row that says so."""


@dataclass
class CanvasStep:
    """The open block of a request behind one denoising step.

    Attributes:
        step: The step, counted from 0 at the beginning of the request.
        begin: Index in the output of the block's first token that was not known when the block began.
        tokens: The id at each position, from there on. An open one holds ``MASK``, or the random token of a
            model whose noise is no mask.
        open: Which positions are not unmasked, ascending, from 0 at ``begin``.
        confidence: Probability of each token in the step that unmasked it, 0 where a position is open.
    """

    step: int
    begin: int
    tokens: list[int]
    open: list[int]
    confidence: list[float]

    @classmethod
    def of(cls, rows: np.ndarray, step: int, begin: int) -> CanvasStep:
        """Reads a request's rows of ``ModelRunnerOutput.unmask_trace``.

        Args:
            rows: float32 ``[W, 4]``. The fourth field is a token, or ``OPEN`` minus a token; NaN behind the
                block.
            step: See above.
            begin: See above.
        """
        codes = rows[:, _CODE]
        codes = codes[~np.isnan(codes)].astype(np.int64)
        masked = codes < 0
        tokens = np.where(masked, OPEN - codes, codes)
        confidence = np.where(masked, 0.0, rows[: len(codes), 1].astype(np.float64).round(5))
        return cls(step, begin, tokens.tolist(), np.flatnonzero(masked).tolist(), confidence.tolist())
