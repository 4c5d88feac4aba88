# SPDX-License-Identifier: Apache-2.0
"""Ends the thinking of requests that have a thinking budget."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.states import RequestState


class Budgets(NamedTuple):
    """Requests that may have to end their thinking now, n of them.

    Attributes:
        which: Their places in the given requests, int64 ``[n]``.
        slots: Their slots, int64 ``[n]``.
        column: Last column at which the end may be; it may lie behind the canvas, int64 ``[n]``.
        end: The id that ends the thinking, int64 ``[n]``.
        thinks: Whether no such id has been written, bool ``[n]``.
    """

    which: torch.Tensor
    slots: torch.Tensor
    column: torch.Tensor
    end: torch.Tensor
    thinks: torch.Tensor


class Thinking:
    """Writes the end of the thinking where the budget ends, if the answer does not hold it.

    The end is written whatever the pass predicts there.
    """

    def __init__(self, canvases: CanvasStates) -> None:
        """Makes it.

        Args:
            canvases: The canvases of this worker's requests.
        """
        self.canvases = canvases
        self._request_states: RequestState | None = None

    def begin_step(self, input_batch: InputBatch, request_states: RequestState, denoises: np.ndarray) -> None:
        """Writes the end to new blocks that would cross the budget, before they are denoised.

        Args:
            input_batch: The step's batch.
            request_states: The runner's request state.
            denoises: Which requests denoise, bool ``[requests]``.
        """
        self._request_states = request_states
        found = self._budgets(input_batch.idx_mapping_np, denoises)
        if found is None:
            return
        canvases, slots = self.canvases, found.slots
        column = found.column.clamp(max=canvases.width - 1)
        writes = (canvases.step[slots] == 0) & found.thinks & (found.column < canvases.length[slots])
        writes &= canvases.masked[slots, column]
        canvases.tokens[slots, column] = torch.where(writes, found.end, canvases.tokens[slots, column])
        canvases.masked[slots, column] &= ~writes

    def end_in_seeds(self, step: DenoisingStep, seeds: np.ndarray) -> None:
        """Replaces seeds of blocks that begin where the budget has ended.

        Args:
            step: The step, whose seeds are on the canvases.
            seeds: Which of its R requests have made a seed, bool ``[R]``.
        """
        found = self._budgets(step.slots_np, seeds)
        if found is None:
            return
        tokens, slots = self.canvases.tokens, found.slots
        writes = found.thinks & (found.column == 0)
        tokens[slots, 0] = torch.where(writes, found.end, tokens[slots, 0])

    def end_in_predictions(self, slots_np: np.ndarray, predicted: torch.Tensor) -> torch.Tensor:
        """What causal rows predict behind a draft's first token, the end where the budget ends.

        Args:
            slots_np: The drafts' slots, ``[n]``, on the host.
            predicted: Tokens that rows predict, int64 ``[n, W]``; column i stands behind canvas column i.
        """
        found = self._budgets(slots_np, np.ones(len(slots_np), dtype=bool))
        if found is None:
            return predicted
        own, columns = predicted[found.which], self.canvases.columns
        at = (found.column - 1).clamp(min=0)[:, None]
        before = ((own == found.end[:, None]) & (columns < at)).any(dim=1)
        forced = (columns == at) & (found.thinks & ~before)[:, None]
        return predicted.index_copy(0, found.which, torch.where(forced, found.end[:, None], own))

    def _budgets(self, slots_np: np.ndarray, asked: np.ndarray) -> Budgets | None:
        """Those of some requests, by their places, that have a budget; None for none."""
        decodings = self.canvases.decoding
        found = [
            (place, int(slot), *decoding.budget)
            for place, slot in enumerate(slots_np.tolist())
            if asked[place] and (decoding := decodings.get(slot)) is not None and decoding.budget is not None
        ]
        if not found:
            return None
        assert self._request_states is not None
        staged = np.array(found, dtype=np.int64).T.copy()
        which, slots, budget, end = async_tensor_h2d(staged, device=self.canvases.device)
        prompt_end = self.canvases.origin.gpu[slots]
        known = self._request_states.total_len.gpu[slots]
        tokens = self._request_states.all_token_ids.gpu[slots]
        position = torch.arange(tokens.shape[1], device=tokens.device)
        written = (position >= prompt_end[:, None]) & (position < known[:, None])
        thinks = ~((tokens == end[:, None]) & written).any(dim=1)
        column = (prompt_end + budget - self.canvases.start[slots]).clamp(min=0)
        return Budgets(which, slots, column, end, thinks)
