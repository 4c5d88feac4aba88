# SPDX-License-Identifier: Apache-2.0
"""What the step that unmasked a position said about its token, kept until the block leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.sampling.step_logits import StepLogits, in_parts
from vllm.v1.diffusion.sampling.step_outputs import from_column
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.sample.logprob import compute_token_logprobs, compute_topk_scores


class CanvasLogprobs:
    """Log probabilities of the open blocks of the requests that want them.

    Such a request holds a *lane* of the tables: ids and scores ``[lanes, W, K]``, the
    token's own first, and ranks ``[lanes, W]``. The tables are as large as the requests
    that were seen at a time needed.
    """

    def __init__(self, sampler: Any, canvases: CanvasStates) -> None:
        """Makes the tables, empty.

        Args:
            sampler: Upstream's sampler: what each request asks for, and the mode.
            canvases: The canvases of this worker's requests.
        """
        self.sampling_states = sampler.sampling_states
        self.token_ids_state = sampler.logprob_token_ids_state
        self.mode = sampler.logprobs_mode
        self.canvases = canvases
        self._wanted = np.zeros(len(self.sampling_states.num_logprobs), dtype=np.int64)
        """Columns that each slot's request needs; 0: it wants no log probabilities."""
        self._lanes = np.zeros_like(self._wanted)
        self._constrained = np.zeros(len(self._wanted), dtype=bool)
        """Slots whose log probabilities are normalised over the ids that may be written."""
        self._ids, self._scores, self._ranks = self._tables(0, 0)

    def add_request(self, slot: int, params: SamplingParams) -> None:
        """Notes what a request wants; after ``sampling_states`` has."""
        self.token_ids_state.add_request(slot, params)
        self._wanted[slot] = 0
        self._constrained[slot] = bool((params.extra_args or {}).get("diffusion_constrained"))
        if params.num_logprobs is None:
            return
        counts = self.sampling_states.num_logprobs
        # All ids but the mask token, which is never generated and has no rank.
        ranked = self.sampling_states.vocab_size - (self.canvases.mask_token_id >= 0)
        counts[slot] = min(counts[slot], ranked)
        listed = len(params.logprob_token_ids or ())
        self._wanted[slot] = 1 + max(int(counts[slot]), listed)
        holders = np.flatnonzero(self._wanted)
        taken = set(self._lanes[holders[holders != slot]].tolist())
        self._lanes[slot] = next(lane for lane in range(len(taken) + 1) if lane not in taken)
        lanes, columns = int(self._lanes[holders].max()) + 1, int(self._wanted.max())
        held, width = self._ids.shape[0], self._ids.shape[2]
        if lanes > held:
            held = min(max(lanes, 2 * held), len(self._wanted))
        if held != len(self._ids) or columns > width or 4 * columns < width:
            self._resize(held, columns)

    def remove(self, slot: int) -> None:
        """Gives a request's slot and lane back, and the tables with the last one."""
        self._wanted[slot] = self._lanes[slot] = 0
        if len(self._ids) and not self._wanted.any():
            self._ids, self._scores, self._ranks = self._tables(0, 0)

    def apply_staged_writes(self) -> None:
        """Makes the noted token ids visible to the device."""
        self.token_ids_state.apply_staged_writes()

    def snapshot(self, step: DenoisingStep) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The step's positions before it writes: whether masked, and the token, ``[N]``.

        None where no request wants log probabilities.
        """
        if not self.wants(step):
            return None
        cell = (step.row_slot, step.row_column)
        return self.canvases.masked[cell], self.canvases.tokens[cell]

    def wants(self, step: DenoisingStep) -> bool:
        """Whether a request of the step wants log probabilities."""
        return bool(self._wanted[step.slots_np].any())

    def reads_processed(self, step: DenoisingStep) -> bool:
        """Whether a step's changed logits are read once its choice is made."""
        asked = self._wanted[step.slots_np] > 0
        if self.mode not in PROCESSED_LOGPROBS_MODES:
            asked &= self._constrained[step.slots_np]
        return bool(asked.any())

    def record(
        self, logits: StepLogits, step: DenoisingStep, before: tuple[torch.Tensor, torch.Tensor] | None
    ) -> None:
        """Keeps what a step says about the positions it wrote.

        Args:
            logits: The step's logits.
            step: The step.
            before: What :meth:`snapshot` saw.
        """
        if before is None:
            return
        cell = (step.row_slot, step.row_column)
        masked, tokens = before
        unmasked = ~self.canvases.masked[cell] & (masked | (self.canvases.tokens[cell] != tokens))
        # What a template gave is never unmasked: what each step says of it will do.
        unmasked |= ~masked & (self.canvases.unmasked_at[cell] < 0)
        wanted = self._wanted[step.slots_np] > 0
        for rows_np in in_parts(step.rows_of(wanted), logits.raw.shape[1]):
            self._keep(logits, step, rows_np, unmasked)

    def read(self, step: DenoisingStep, first: torch.Tensor, num_requests: int) -> LogprobsTensors | None:
        """The tables of a step's requests, from each block's first new position.

        Args:
            step: The step.
            first: Column of that position, int64 ``[R]``.
            num_requests: Requests in the batch.

        Returns:
            W rows for each request that wants them, none for the others, as
            ``cu_num_generated_tokens`` says; None if no request does.
        """
        wanted = self._wanted[step.slots_np] > 0
        if not wanted.any():
            return None
        lanes_np = self._lanes[step.slots_np[wanted]]
        lane = async_tensor_h2d(lanes_np, dtype=torch.int64, device=first.device)
        which = async_tensor_h2d(np.flatnonzero(wanted), dtype=torch.int64, device=first.device)
        columns = int(self._wanted[step.slots_np].max())
        rows = np.zeros(num_requests + 1, dtype=np.int64)
        rows[step.requests[wanted] + 1] = self.canvases.width
        ids, scores, ranks = (
            from_column(table[lane], first[which]).flatten(0, 1)
            for table in (self._ids[..., :columns], self._scores[..., :columns], self._ranks)
        )
        return LogprobsTensors(ids, scores, ranks, cu_num_generated_tokens=rows.cumsum().tolist())

    def slide(self, slots_np: np.ndarray, leaving: torch.Tensor) -> None:
        """Moves what is kept of windows that slide on, by as many columns.

        Args:
            slots_np: The requests' slots, ``[R]``, on the host.
            leaving: Tokens that leave at the front of each, int64 ``[R]``.
        """
        wanted = np.flatnonzero(self._wanted[slots_np])
        if not len(wanted):
            return
        lane, which = (
            async_tensor_h2d(values, dtype=torch.int64, device=leaving.device)
            for values in (self._lanes[slots_np[wanted]], wanted)
        )
        for table in (self._ids, self._scores, self._ranks):
            table[lane] = from_column(table[lane], leaving[which])

    def _keep(
        self, logits: StepLogits, step: DenoisingStep, rows_np: np.ndarray, unmasked: torch.Tensor
    ) -> None:
        """Writes what some rows say to the tables, where they were unmasked."""
        request_np = step.request_np[rows_np]
        rows, lane = (
            async_tensor_h2d(values, dtype=torch.int64, device=unmasked.device)
            for values in (rows_np, self._lanes[step.slots_np[request_np]])
        )
        slots_np = step.slots_np[np.unique(request_np)]
        slot, column, now = step.row_slot[rows], step.row_column[rows], unmasked[rows]
        scores = self._scored(
            self._rows(logits, rows, rows_np, slot, slots_np),
            self.canvases.tokens[slot, column],
            slot,
            slots_np,
        )
        columns = scores.logprobs.shape[1]
        for table, new in (
            (self._ids[..., :columns], scores.logprob_token_ids.to(torch.int32)),
            (self._scores[..., :columns], scores.logprobs),
            (self._ranks, scores.selected_token_ranks.to(torch.int32)),
        ):
            keep = now[:, None] if new.dim() > 1 else now
            table[lane, column] = torch.where(keep, new, table[lane, column])

    def _rows(
        self,
        logits: StepLogits,
        rows: torch.Tensor,
        rows_np: np.ndarray,
        slot: torch.Tensor,
        slots_np: np.ndarray,
    ) -> torch.Tensor:
        """A copy of some rows, raw or, where ``--logprobs-mode`` says so, processed and tempered."""
        if self.mode not in PROCESSED_LOGPROBS_MODES:
            plain = logits.plain(rows)
            if not self._constrained[slots_np].any():
                return plain
            constrained = async_tensor_h2d(self._constrained, device=rows.device)[slot]
            return torch.where(constrained[:, None], logits.of(rows_np), plain)
        temperature = self.sampling_states.temperature.gpu[slot]
        return logits.of(rows_np).div_(torch.where(temperature == 0, 1.0, temperature)[:, None])

    def _scored(
        self, logits: torch.Tensor, token: torch.Tensor, slot: torch.Tensor, slots_np: np.ndarray
    ) -> LogprobsTensors:
        """Ids, scores and ranks of rows, ``[n, V]``.

        The mask token stays in the normaliser, as in a token's confidence, but has no
        rank and is none of the best: it is never generated.
        """
        mask = self.canvases.mask_token_id
        held = None
        if mask >= 0:
            held = logits[:, mask].clone()
            if self.mode in PROCESSED_LOGPROBS_MODES:
                # Ids that a request excludes are -inf as well; the mask token must rank behind them.
                logits.clamp_(min=torch.finfo(logits.dtype).min)
            logits[:, mask] = -torch.inf
        scores = compute_topk_scores(
            logits,
            max(0, self.sampling_states.max_num_logprobs(slots_np)),
            token,
            logprob_token_ids_state=self.token_ids_state,
            expanded_idx_mapping=slot,
            max_per_req_token_ids=self.token_ids_state.max_num_token_ids(slots_np),
            logits_mode=True,
        )
        excluded = scores.logprobs <= torch.finfo(logits.dtype).min
        if self.mode.endswith("logits"):
            return scores._replace(logprobs=scores.logprobs.masked_fill(excluded, -torch.inf))
        if held is not None:
            logits[:, mask] = held
        values = compute_token_logprobs(logits, scores.logprob_token_ids)
        return scores._replace(logprobs=values.masked_fill_(excluded, -torch.inf))

    def _resize(self, lanes: int, columns: int) -> None:
        """Makes tables of another size, with what the old ones held."""
        old = (self._ids, self._scores, self._ranks)
        self._ids, self._scores, self._ranks = new = self._tables(lanes, columns)
        for table, before in zip(new, old, strict=True):
            common = tuple(slice(min(a, b)) for a, b in zip(table.shape, before.shape, strict=True))
            table[common] = before[common]

    def _tables(self, lanes: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shape, device = (lanes, self.canvases.width, columns), self.canvases.device
        ids = torch.zeros(shape, dtype=torch.int32, device=device)
        ranks = torch.zeros(shape[:2], dtype=torch.int32, device=device)
        return ids, torch.zeros(shape, dtype=torch.float32, device=device), ranks
