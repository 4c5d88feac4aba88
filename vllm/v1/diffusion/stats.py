# SPDX-License-Identifier: Apache-2.0
"""What each row of logits says about its canvas position."""

from __future__ import annotations

from typing import Any

import torch

from vllm.v1.diffusion.canvas import CanvasStates
from vllm.v1.diffusion.logits import StepLogits
from vllm.v1.diffusion.ops import RowStats, row_stats
from vllm.v1.diffusion.step import DenoisingStep

_STEP_BITS = 16
"""Low bits of a random draw's offset; the token's position is above them."""


class StepStatistics:
    """Draws a token for every masked position; one pass over the logits.

    A row's draw and its statistics depend on the request's parameters, its seed and
    the row's logits only, not on what shares the batch.
    """

    def __init__(self, sampling_states: Any, canvases: CanvasStates, tempered_confidence: bool) -> None:
        """Makes it.

        Args:
            sampling_states: Upstream's ``SamplingStates``.
            canvases: The canvases of this worker's requests.
            tempered_confidence: Whether confidence is the probability in the
                distribution that is sampled (SDAR), not in the plain softmax
                (LLaDA).
        """
        self.sampling_states = sampling_states
        self.canvases = canvases
        self.tempered_confidence = tempered_confidence

    def __call__(self, logits: StepLogits, step: DenoisingStep) -> RowStats:
        """Statistics of all rows of a step, ``[N]``.

        At temperature 0 the probabilities are those of the plain softmax.
        """
        if logits.rows is None:
            return self._rows(logits.raw, step.row_slot, step.row_column, step.active)
        raw_only = step.active.index_fill(0, logits.rows, False)
        stats = self._rows(logits.raw, step.row_slot, step.row_column, raw_only)
        assert logits.processed is not None
        rows = logits.rows
        processed = self._rows(
            logits.processed, step.row_slot[rows], step.row_column[rows], step.active[rows]
        )
        for values, new in zip(stats, processed, strict=True):
            values.index_copy_(0, rows, new)
        return stats

    def _rows(
        self, logits: torch.Tensor, slot: torch.Tensor, column: torch.Tensor, active: torch.Tensor
    ) -> RowStats:
        states, canvases = self.sampling_states, self.canvases
        temperature = states.temperature.gpu[slot]
        if self.tempered_confidence:
            scale = torch.where(temperature == 0, 1.0, temperature)
        else:
            scale = torch.ones_like(temperature)
        position = canvases.start[slot] + column
        return row_stats(
            logits,
            temperature,
            scale,
            states.seeds.gpu[slot],
            (position << _STEP_BITS) + canvases.step[slot],
            active,
            canvases.mask_token_id,
        )
