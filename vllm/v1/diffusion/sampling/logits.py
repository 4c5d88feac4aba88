# SPDX-License-Identifier: Apache-2.0
"""From raw logits to those that a request's parameters ask for."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.sampling.bad_words import BadWords
from vllm.v1.diffusion.sampling.boost import Boost
from vllm.v1.diffusion.sampling.penalties import penalize
from vllm.v1.diffusion.sampling.policy_selection import PolicySelection
from vllm.v1.diffusion.sampling.step_logits import Part, StepLogits, in_parts, soft_capped
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext


class LogitsPipeline:
    """Changes the rows of requests that ask for it, on a copy; other rows cost nothing.

    What a policy adds comes first, then all in upstream's order: ``allowed_token_ids``,
    ``logit_bias`` and ``min_tokens``; penalties; bad words; and what ``min_p``, ``top_k``
    and ``top_p`` drop.
    """

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
        self.penalties_state = sampler.penalties_state
        self.bias_state = next(p for p in sampler.logits_processors if isinstance(p, LogitBiasState))
        self.requests = sampler.req_states
        self.canvases = canvases
        self.bad_words = BadWords(canvases, self.requests)
        self.soft_cap: float | None = None
        """What the model's logits are to be soft-capped at, where it leaves that to the sampler."""
        num_slots = len(self.sampling_states.num_logprobs)
        # What a request asks for, by slot.
        self._bad_words, self._filters, self._needed = np.zeros((3, num_slots), dtype=bool)

    def add_request(self, slot: int, params: SamplingParams) -> None:
        """Notes a request's sampling parameters."""
        states = self.sampling_states
        filters = params.greedy_filters
        if self.keeps_filters and filters:
            params = params.clone()
            params.top_k, params.top_p = filters
        states.add_request(slot, params)
        self._filters[slot] = (
            states.top_k.np[slot] != states.vocab_size
            or states.top_p.np[slot] != 1.0
            or states.min_p.np[slot] != 0.0
        )
        self._bad_words[slot] = self.bad_words.add_request(slot, params)
        self._needed[slot] = self._filters[slot] | self._bad_words[slot]
        self._needed[slot] |= self.bias_state.add_request(slot, params)
        self._needed[slot] |= self.penalties_state.add_request(slot, params)

    def remove(self, slot: int) -> None:
        """Gives a request's slot back."""
        self._bad_words[slot] = self._filters[slot] = self._needed[slot] = False
        self.bad_words.remove(slot)

    def apply_staged_writes(self) -> None:
        """Makes the noted parameters visible to the device."""
        for state in (self.sampling_states, self.bias_state, self.penalties_state):
            state.apply_staged_writes()

    def rehearse(self, num_rows: int, logits: torch.Tensor) -> torch.Tensor:
        """Takes the memory that the largest part of changed logits takes, and returns that part.

        Args:
            num_rows: Rows of logits that a step may have.
            logits: Logits of the model's, for their width and device.
        """
        width, device = logits.shape[1], logits.device
        part = next(in_parts(np.arange(num_rows), width))
        changed = torch.zeros(len(part), width, device=device)
        slot = torch.zeros(len(part), dtype=torch.int64, device=device)
        top_k, top_p = slot.to(torch.int32) + 1, slot.to(torch.float32) + 0.5
        # Rows that are filtered are copied where they share a part with others that are not.
        self._drop(changed.clone(), slot, np.zeros(1, dtype=np.int64), top_k, top_p)
        return changed

    def __call__(self, logits: torch.Tensor, step: DenoisingStep, keep: bool = False) -> StepLogits:
        """Processes a step's logits, ``[N, V]``; they are left as they are.

        Args:
            logits: The logits.
            step: The step.
            keep: Whether changed rows are read after the canvases were written.
        """
        needed = self._changed(step)
        if not needed.any():
            return StepLogits(logits, cap=self.soft_cap)
        change = partial(self._change, logits, step, self.policies.boosts(logits, step))
        return StepLogits(logits, step.rows_of(needed), change, keep, self.soft_cap)

    def changes(self, step: DenoisingStep) -> bool:
        """Whether a request of the step asks for other logits than the model's."""
        return bool(self._changed(step).any()) or self.soft_cap is not None

    def _changed(self, step: DenoisingStep) -> np.ndarray:
        """Which of the step's requests do, bool ``[R]``."""
        needed: np.ndarray = self._needed[step.slots_np]
        needed[self.policies.boosted] = True
        return needed

    def _change(
        self, logits: torch.Tensor, step: DenoisingStep, boosts: list[Boost], rows_np: np.ndarray
    ) -> Part:
        """Makes changed logits of some rows; those of one request follow each other."""
        device = logits.device
        rows = async_tensor_h2d(rows_np, dtype=torch.int64, device=device)
        processed = soft_capped(logits[rows], self.soft_cap)
        for boost in boosts:
            boost.add_to(processed, rows, len(logits))
        request_np = step.request_np[rows_np]
        present, first, counts = np.unique(request_np, return_index=True, return_counts=True)
        slot, slots_np = step.row_slot[rows], step.slots_np[present]
        column = step.row_column[rows]
        self._bias(processed, slot, column, slots_np)
        if (penalized := self.penalties_state.use_penalty[slots_np]).any():
            slots = async_tensor_h2d(slots_np[penalized], dtype=torch.int64, device=device)
            penalize(processed, slot, column, slots, self.penalties_state, self.canvases, self.requests)
        if self._bad_words[slots_np].any():
            # Of each of the step's requests: its first column here, the one behind its last, its row.
            begins = np.zeros((3, len(step.requests)), dtype=np.int64)
            begins[0, present] = rows_np[first] - (np.cumsum(step.row_counts) - step.row_counts)[present]
            begins[1, present] = begins[0, present] + counts
            begins[2, present] = first
            self.bad_words.ban(processed, async_tensor_h2d(begins, device=device), step)
        if (filtered := self._filters[slots_np]).all():
            self._filter(processed, slot, slots_np)
        elif filtered.any():
            some = np.flatnonzero(np.repeat(filtered, counts))
            index = async_tensor_h2d(some, dtype=torch.int64, device=device)
            part = processed[index]
            self._filter(part, slot[index], slots_np[filtered])
            processed[index] = part
        return Part(rows_np, rows, processed)

    def _bias(
        self, logits: torch.Tensor, slot: torch.Tensor, column: torch.Tensor, slots_np: np.ndarray
    ) -> None:
        """Applies allowed ids, biases and the ban on early stop tokens, in place."""
        context = LogitsContext(
            expanded_idx_mapping=slot,
            idx_mapping=slot,
            idx_mapping_np=slots_np,
            expanded_local_pos=column,
            input_ids=column,
            # Upstream's row predicts the position after its own.
            pos=self.canvases.start[slot] + column - 1,
            seq_lens_upper_bound_np=slots_np,
        )
        self.bias_state.apply(logits, context)

    def _filter(self, logits: torch.Tensor, slot: torch.Tensor, slots_np: np.ndarray) -> None:
        """Drops what min-p, top-k and top-p exclude at the row's temperature, in place.

        The mask token, which is never chosen, takes no place of the kept.
        """
        states = self.sampling_states
        some_k, some_p = states.top_k.np[slots_np] != states.vocab_size, states.top_p.np[slots_np] != 1.0
        top_k = states.top_k.gpu[slot] if some_k.any() else None
        top_p = states.top_p.gpu[slot] if some_p.any() else None
        self._drop(logits, slot, slots_np, top_k, top_p)

    def _drop(
        self,
        logits: torch.Tensor,
        slot: torch.Tensor,
        slots_np: np.ndarray,
        top_k: torch.Tensor | None,
        top_p: torch.Tensor | None,
    ) -> None:
        states = self.sampling_states
        temperature = states.temperature.gpu[slot]
        scaled = logits / torch.where(temperature == 0, 1.0, temperature)[:, None]
        if self.canvases.mask_token_id >= 0:
            scaled[:, self.canvases.mask_token_id] = -torch.inf
        states.apply_min_p(scaled, slot, slots_np)
        if self.keeps_filters and top_k is not None and top_p is not None:
            scaled, top_p = apply_top_k_top_p(scaled, None, top_p), None
        if top_k is not None or top_p is not None:
            scaled = apply_top_k_top_p(scaled, top_k, top_p)
        logits.masked_fill_(scaled == -torch.inf, -torch.inf)
