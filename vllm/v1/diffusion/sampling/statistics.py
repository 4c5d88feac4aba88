# SPDX-License-Identifier: Apache-2.0
"""What each row of logits says about its canvas position."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.kernels.merge_row_stats import merge_row_stats, share_numbers
from vllm.v1.diffusion.kernels.noise import draw_offset
from vllm.v1.diffusion.kernels.row_stats import RowStats, row_stats
from vllm.v1.diffusion.layers.vocabulary_shares import VocabularyShares
from vllm.v1.diffusion.sampling.step_logits import StepLogits, in_parts


class RowProposals(NamedTuple):
    """What policies that redraw their blocks read of N rows; see ``policies.base.Proposals``, ``[N]``."""

    token: torch.Tensor
    confidence: torch.Tensor
    plain: torch.Tensor


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
        greedy = not self._draws(step)
        stats = self._all_rows(logits, step, step.active, greedy, self.canvases.mask_token_id)
        self._unmask_late(stats, logits, step)
        return stats

    def reads_rows(self, step: DenoisingStep) -> bool:
        """Whether a step's statistics need whole rows: where a token is drawn, or end tokens come last."""
        return self._draws(step) or bool(self.canvases.flags.late[step.slots_np].any())

    def of_share(self, share: torch.Tensor, shares: VocabularyShares, step: DenoisingStep) -> RowStats:
        """Statistics of rows of which every rank has a share, where nothing needs whole rows.

        Ranks exchange six numbers per row. The tokens are those of whole rows.

        Args:
            share: This rank's logits, ``[N, V']``.
            shares: The shares.
            step: The step.
        """
        own, mask = shares.own(share), self.canvases.mask_token_id
        zeros, ones, numbers = self._constants(len(own))
        stats = row_stats(own, zeros, ones, numbers, numbers, step.active, shares.own_id(mask))
        parts = shares.of_all(share_numbers(own, stats, shares.first))
        return merge_row_stats(parts, step.active, mask)

    def proposals(
        self, logits: StepLogits, step: DenoisingStep, active: torch.Tensor, edit_ids: tuple[int, ...]
    ) -> RowProposals:
        """What the rows propose where the mask token counts as a token, and where none of the ids does.

        Args:
            logits: The step's logits.
            step: The step.
            active: Rows that are read, bool ``[N]``.
            edit_ids: Ids of the delete and the split token, or none.
        """
        greedy = not self._draws(step)
        free = self._all_rows(logits, step, active, greedy, -1, ())
        left_out = (self.canvases.mask_token_id, *edit_ids)
        plain = self._all_rows(logits, step, active, True, -1, left_out)
        return RowProposals(free.sample, free.sample_prob, plain.sample)

    def _all_rows(
        self,
        logits: StepLogits,
        step: DenoisingStep,
        active: torch.Tensor,
        greedy: bool,
        banned: int,
        left_out: tuple[int, ...] = (),
    ) -> RowStats:
        """Statistics of a step's rows; see :meth:`_rows`.

        Args:
            logits: The step's logits.
            step: The step.
            active: Rows that are read, bool ``[N]``.
            greedy: Whether nothing is drawn: neither seeds nor positions matter then.
            banned: An id that is never taken and stays in the normaliser; -1 for none.
            left_out: Ids that count for nothing.
        """
        cells = step.row_slot, step.row_column
        if logits.rows_np is None:
            with _without(logits.raw, left_out):
                return self._rows(logits.raw, *cells, active, greedy, banned)
        changed = async_tensor_h2d(logits.rows_np, dtype=torch.int64, device=logits.raw.device)
        raw_only = active.index_fill(0, changed, False)
        with _without(logits.raw, left_out):
            stats = self._rows(logits.raw, *cells, raw_only, greedy, banned)
        for _, rows, values in logits.changed():
            with _without(values, left_out):
                part = self._rows(values, cells[0][rows], cells[1][rows], active[rows], greedy, banned)
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
        banned: int,
    ) -> RowStats:
        states, canvases = self.sampling_states, self.canvases
        if greedy:
            zeros, ones, numbers = self._constants(len(slot))
            return row_stats(logits, zeros, ones, numbers, numbers, active, banned)
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
            banned,
        )

    def _draws(self, step: DenoisingStep) -> bool:
        return bool(self.sampling_states.temperature.np[step.slots_np].any())

    def _constants(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Zeros and ones, float32, and zeros, int64, each ``[count]``."""
        if self._held is None or len(self._held[0]) < count:
            device = self.canvases.device
            zeros = torch.zeros(count, dtype=torch.int64, device=device)
            self._held = (zeros.to(torch.float32), torch.ones(count, device=device), zeros)
        zeros, ones, numbers = self._held
        return zeros[:count], ones[:count], numbers[:count]


@contextmanager
def _without(logits: torch.Tensor, ids: tuple[int, ...]) -> Iterator[None]:
    """Takes ids out of rows of logits for a while; nothing of their size is copied."""
    if not ids:
        yield
        return
    held = [logits[:, one].clone() for one in ids]
    for one in ids:
        logits[:, one] = -torch.inf
    yield
    for one, values in zip(ids, held, strict=True):
        logits[:, one] = values
