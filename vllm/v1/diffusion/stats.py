# SPDX-License-Identifier: Apache-2.0
"""What each row of logits says about its canvas position."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vllm.utils.torch_utils import async_tensor_h2d
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
        stats = self._all_rows(logits, step)
        self._settle_late(stats, logits, step)
        return stats

    def _all_rows(self, logits: StepLogits, step: DenoisingStep) -> RowStats:
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

    def _settle_late(self, stats: RowStats, logits: StepLogits, step: DenoisingStep) -> None:
        """Takes the end tokens out of the confidences of requests that ask for it, in place.

        The token is chosen as ever; then the end tokens' logits become minus infinity, so
        that an end token's confidence is zero and the others share what it had (LLaDA's
        ``confidence_eos_eot_inf``).
        """
        decoding = self.canvases.decoding
        late = [d.late_ids if (d := decoding.get(slot)) else () for slot in step.slots_np.tolist()]
        asked = np.array([bool(ids) for ids in late])
        if not asked.any():
            return
        device = logits.raw.device
        rows = async_tensor_h2d(step.rows_of(asked), dtype=torch.int64, device=device)
        values = logits.raw[rows].float()
        if logits.rows is not None and logits.processed is not None:
            place = rows.new_full((len(step.active),), -1)
            place[logits.rows] = torch.arange(len(logits.rows), device=device)
            values = torch.where((place[rows] >= 0)[:, None], logits.processed[place[rows]], values)
        values[:, list(next(ids for ids in late if ids))] = -torch.inf
        chosen = stats.sample[rows].clamp(min=0)[:, None]
        confidence = (values.gather(1, chosen)[:, 0] - values.logsumexp(dim=1)).exp()
        stats.sample_prob[rows] = torch.where(step.active[rows], confidence, stats.sample_prob[rows])

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
