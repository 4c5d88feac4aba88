# SPDX-License-Identifier: Apache-2.0
"""From raw logits to those that a request's parameters ask for."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas import CanvasStates
from vllm.v1.diffusion.selection import PolicySelection
from vllm.v1.diffusion.step import DenoisingStep
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p


class StepLogits(NamedTuple):
    """A step's logits.

    Attributes:
        raw: The model's, ``[N, V]``, in its dtype.
        rows: Rows that were changed, int64 ``[M]``, ascending; None for none.
        processed: Those rows, changed, float32 ``[M, V]``.
    """

    raw: torch.Tensor
    rows: torch.Tensor | None = None
    processed: torch.Tensor | None = None


class LogitsPipeline:
    """Changes the rows of requests that ask for it, on a copy; other rows cost nothing."""

    def __init__(
        self, sampler: Any, canvases: CanvasStates, policies: PolicySelection, keeps_filters: bool
    ) -> None:
        """Makes the pipeline.

        Args:
            sampler: Upstream's sampler, whose per-request states are used.
            canvases: The canvases of this worker's requests.
            policies: The policies, some of which add to logits.
            keeps_filters: Whether top-k and top-p act at temperature 0 too, and top-p
                before top-k (Dream).
        """
        self.policies = policies
        self.keeps_filters = keeps_filters
        self.sampling_states = sampler.sampling_states
        self.canvases = canvases
        self._needed = np.zeros(len(sampler.sampling_states.num_logprobs), dtype=bool)

    def add_request(self, slot: int, params: SamplingParams) -> None:
        """Notes a request's sampling parameters."""
        states = self.sampling_states
        filters = params.greedy_filters
        if self.keeps_filters and filters:
            params = params.clone()
            params.top_k, params.top_p = filters
        states.add_request(slot, params)
        self._needed[slot] = states.top_k.np[slot] != states.vocab_size or states.top_p.np[slot] != 1.0

    def apply_staged_writes(self) -> None:
        """Makes the noted parameters visible to the device."""
        self.sampling_states.apply_staged_writes()

    def __call__(self, logits: torch.Tensor, step: DenoisingStep) -> StepLogits:
        """Processes a step's logits, ``[N, V]``; they are left as they are."""
        needed = self._needed[step.slots_np]
        needed[self.policies.boosted] = True
        if not needed.any():
            return StepLogits(logits)
        rows_np = step.rows_of(needed)
        rows = async_tensor_h2d(rows_np, dtype=torch.int64, device=logits.device)
        processed = logits[rows].float()
        self.policies.boost(processed, rows, step)
        self._filter(processed, step.row_slot[rows], step.slots_np[needed])
        return StepLogits(logits, rows, processed)

    def _filter(self, logits: torch.Tensor, slot: torch.Tensor, slots_np: np.ndarray) -> None:
        """Drops what top-k and top-p exclude at the row's temperature, in place.

        In a row that asks for either, the mask token, which is never chosen, takes no place
        among the kept.
        """
        states = self.sampling_states
        asks = (states.top_k.np[slots_np] != states.vocab_size) | (states.top_p.np[slots_np] != 1.0)
        if not asks.any():
            return
        temperature = states.temperature.gpu[slot]
        scaled = logits / torch.where(temperature == 0, 1.0, temperature)[:, None]
        filtered = (states.top_k.gpu[slot] != states.vocab_size) | (states.top_p.gpu[slot] != 1.0)
        scaled[:, self.canvases.mask_token_id].masked_fill_(filtered, -torch.inf)
        top_k, top_p = states.get_top_k_top_p(slot, slots_np)
        if self.keeps_filters and top_k is not None:
            scaled, top_p = apply_top_k_top_p(scaled, None, top_p), None
        scaled = apply_top_k_top_p(scaled, top_k, top_p)
        logits.masked_fill_(scaled == -torch.inf, -torch.inf)
