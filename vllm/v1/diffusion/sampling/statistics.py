# SPDX-License-Identifier: Apache-2.0
"""What each row of logits says about its canvas position."""

from __future__ import annotations

from typing import Any

import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.kernels.noise import draw_offset
from vllm.v1.diffusion.kernels.row_stats import RowStats, row_stats
from vllm.v1.diffusion.sampling.logits import StepLogits, in_parts


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
        self._held: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __call__(self, logits: StepLogits, step: DenoisingStep) -> RowStats:
        """Statistics of all rows of a step, ``[N]``.

        At temperature 0 the probabilities are those of the plain softmax.
        """
        stats = self._all_rows(logits, step)
        self._unmask_late(stats, logits, step)
        return stats

    def _all_rows(self, logits: StepLogits, step: DenoisingStep) -> RowStats:
        # Nothing is drawn: neither seeds nor positions matter.
        greedy = not self.sampling_states.temperature.np[step.slots_np].any()
        if logits.rows_np is None:
            return self._rows(logits.raw, step.row_slot, step.row_column, step.active, greedy)
        changed = async_tensor_h2d(logits.rows_np, dtype=torch.int64, device=logits.raw.device)
        raw_only = step.active.index_fill(0, changed, False)
        stats = self._rows(logits.raw, step.row_slot, step.row_column, raw_only, greedy)
        for _, rows, values in logits.changed():
            cells = step.row_slot[rows], step.row_column[rows]
            part = self._rows(values, *cells, step.active[rows], greedy)
            for all_rows, new in zip(stats, part, strict=True):
                all_rows.index_copy_(0, rows, new)
        return stats

    def _unmask_late(self, stats: RowStats, logits: StepLogits, step: DenoisingStep) -> None:
        """Takes the end tokens out of the confidences of requests that ask for it, in place.

        The token is chosen as ever; then the end tokens' logits become minus infinity, so
        that an end token's confidence is zero and the others share what it had (LLaDA's
        ``confidence_eos_eot_inf``).
        """
        decoding = self.canvases.decoding
        asked = self.canvases.flags.late[step.slots_np]
        if not asked.any():
            return
        # Those of the model: the same of every request. A list as an index would wait for the device.
        late_ids = async_tensor_h2d(
            list(decoding[int(step.slots_np[asked.argmax()])].late_ids),
            dtype=torch.int64,
            device=logits.raw.device,
        )
        for rows_np in in_parts(step.rows_of(asked), logits.raw.shape[1]):
            rows = async_tensor_h2d(rows_np, dtype=torch.int64, device=logits.raw.device)
            values = logits.of(rows_np)
            values.index_fill_(1, late_ids, -torch.inf)
            chosen = stats.sample[rows].clamp(min=0)[:, None]
            confidence = (values.gather(1, chosen)[:, 0] - values.logsumexp(dim=1)).exp()
            stats.sample_prob[rows] = torch.where(step.active[rows], confidence, stats.sample_prob[rows])

    def _rows(
        self,
        logits: torch.Tensor,
        slot: torch.Tensor,
        column: torch.Tensor,
        active: torch.Tensor,
        greedy: bool,
    ) -> RowStats:
        states, canvases = self.sampling_states, self.canvases
        if greedy:
            zeros, ones, numbers = self._constants(len(slot))
            return row_stats(logits, zeros, ones, numbers, numbers, active, canvases.mask_token_id)
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
            draw_offset(position, canvases.step[slot]),
            active,
            canvases.mask_token_id,
        )

    def _constants(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Zeros and ones, float32, and zeros, int64, each ``[count]``."""
        if self._held is None or len(self._held[0]) < count:
            device = self.canvases.device
            zeros = torch.zeros(count, dtype=torch.int64, device=device)
            self._held = (zeros.to(torch.float32), torch.ones(count, device=device), zeros)
        zeros, ones, numbers = self._held
        return zeros[:count], ones[:count], numbers[:count]
