# SPDX-License-Identifier: Apache-2.0
"""Turns a step's logits into settled canvas positions and emitted blocks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas import CanvasStates
from vllm.v1.diffusion.ops import RowStats, row_stats, unmask
from vllm.v1.diffusion.policies import CanvasView, PositionStats
from vllm.v1.diffusion.rules import Rule
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput

_STEP_BITS = 16
"""Low bits of a random draw's offset; the token's position is above them."""


class DenoisingSampler:
    """One pass over the logits, one choice of positions, no wait for the device.

    The runner calls it where it would call upstream's sampler, whose per-request
    sampling parameters it uses.
    """

    compute_nans = False
    # The runner counts no tokens for penalties where this is None.
    penalties_state = SimpleNamespace(output_bin_counts=None)

    def __init__(
        self,
        sampler: Any,
        canvases: CanvasStates,
        overlaps: bool,
        tempered_confidence: bool,
    ) -> None:
        """Makes the sampler.

        Args:
            sampler: Upstream's sampler.
            canvases: The canvases of this worker's requests.
            overlaps: Whether a window may have been scheduled before it was known
                that the step before it settles the block.
            tempered_confidence: Whether confidence is the probability in the
                distribution that is sampled (SDAR), not in the plain softmax
                (LLaDA).
        """
        self.sampling_states = sampler.sampling_states
        self.req_states = sampler.req_states
        self.canvases = canvases
        self.overlaps = overlaps
        self.tempered_confidence = tempered_confidence

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> None:
        """Notes a request's sampling parameters."""
        self.sampling_states.add_request(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        """Makes the noted parameters visible to the device."""
        self.sampling_states.apply_staged_writes()

    def __call__(
        self,
        logits: torch.Tensor,
        input_batch: InputBatch,
        draft_logits: torch.Tensor | None = None,
    ) -> SamplerOutput:
        """Makes one denoising step for every request that has logits.

        Args:
            logits: ``[rows, vocab_size]``; a row for each canvas position of the
                requests that denoise in this step, in batch order.
            input_batch: The step's batch.
            draft_logits: Unused; upstream's interface.

        Returns:
            The tokens of blocks that settled, ``[requests, W]``, how many they
            are, and how many of the window's positions stay uncomputed.
        """
        canvases, requests = self.canvases, self.req_states
        num_reqs = input_batch.num_reqs
        slots = input_batch.idx_mapping[:num_reqs]
        known = requests.total_len.gpu[slots].to(torch.int64)
        window_end = input_batch.seq_lens[:num_reqs].to(torch.int64)
        start, length = canvases.start[slots], canvases.length[slots]
        settled = slots.new_zeros(num_reqs, dtype=torch.bool)
        sampled = slots.new_zeros(num_reqs, canvases.width, dtype=torch.int32)
        trace = None

        rows_np = np.diff(input_batch.cu_num_logits_np[: num_reqs + 1])
        denoising = np.flatnonzero(rows_np)
        if len(denoising):
            index = async_tensor_h2d(denoising, dtype=torch.int64, device=slots.device)
            row_start = async_tensor_h2d(
                np.concatenate(([0], np.cumsum(rows_np[denoising]))),
                dtype=torch.int32,
                device=slots.device,
            )
            covered = (start + length <= window_end)[index]
            settled[index] = self._denoise(logits, input_batch, slots[index], denoising, row_start, covered)
            first = (known - start)[index].clamp(min=0)
            sampled[index] = _from_column(canvases.tokens[slots[index]].to(torch.int32), first)
            trace = torch.zeros(*sampled.shape, 2, device=slots.device)
            for field, values in enumerate((canvases.settled_at, canvases.confidence)):
                trace[index, :, field] = _from_column(values[slots[index]].to(torch.float32), first)
            canvases.next_block(slots[index], settled[index])
        num_sampled = torch.where(settled, start + length - known, 0).to(torch.int32)
        computed = self._computed(slots, window_end, known, start, settled)
        return SamplerOutput(
            sampled_token_ids=sampled,
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=num_sampled,
            num_rejected=(window_end - computed).to(torch.int32),
            unmask_trace=trace,
        )

    def _computed(
        self,
        slots: torch.Tensor,
        window_end: torch.Tensor,
        known: torch.Tensor,
        start: torch.Tensor,
        settled: torch.Tensor,
    ) -> torch.Tensor:
        """Positions that are computed for good after this step, int64 ``[requests]``.

        ``vllm.v1.diffusion.window.computed_after``, on the device.

        Args:
            slots: The requests' slots.
            window_end: Ends of their windows.
            known: Tokens known when the step began.
            start: Starts of their blocks, likewise.
            settled: Whether the step settled the block.
        """
        length = self.canvases.block_length.gpu[slots].to(torch.int64)
        return torch.minimum(window_end, known) // length * length

    def _denoise(
        self,
        logits: torch.Tensor,
        input_batch: InputBatch,
        slots: torch.Tensor,
        denoising: np.ndarray,
        row_start: torch.Tensor,
        covered: torch.Tensor,
    ) -> torch.Tensor:
        """Settles positions; which blocks have none left, bool ``[requests]``."""
        canvases = self.canvases
        row_slot = input_batch.expanded_idx_mapping
        row_position = input_batch.expanded_local_pos.to(torch.int64)
        active = canvases.masked[row_slot, row_position]
        rule = canvases.rule.gpu
        if self.overlaps:
            # The window's block may have settled in the step before: then this
            # step only commits it, and the canvas, of the next block, waits.
            active &= torch.repeat_interleave(covered, row_start.diff(), output_size=len(row_slot))
            rule = rule.clone()
            rule[slots] = torch.where(covered, rule[slots], int(Rule.GIVEN))
        slots_np = input_batch.idx_mapping_np[denoising]
        stats = self._row_stats(logits, row_slot, row_position, slots_np, active)
        picked = self._picked(stats, slots, slots_np, row_start)
        if picked is None and self.overlaps:
            picked = torch.zeros_like(active)
        remaining = unmask(
            stats.sample,
            stats.sample_prob,
            stats.entropy,
            picked,
            row_start,
            slots,
            canvases.tokens,
            canvases.masked,
            canvases.settled_at,
            canvases.step,
            rule,
            canvases.steps.gpu,
            canvases.length,
            canvases.threshold.gpu,
        )
        settled_now = active & ~canvases.masked[row_slot, row_position]
        canvases.confidence[row_slot, row_position] = torch.where(
            settled_now, stats.sample_prob, canvases.confidence[row_slot, row_position]
        )
        if self.overlaps:
            canvases.step[slots] -= (~covered).to(torch.int32)
        return (remaining == 0) & covered

    def _row_stats(
        self,
        logits: torch.Tensor,
        row_slot: torch.Tensor,
        row_position: torch.Tensor,
        slots_np: np.ndarray,
        active: torch.Tensor,
    ) -> RowStats:
        """What each row says, with temperature, top-k and top-p.

        At temperature 0 the probabilities are those of the plain softmax.
        """
        states, canvases = self.sampling_states, self.canvases
        temperature = states.temperature.gpu[row_slot]
        scale = torch.where(temperature == 0, 1.0, temperature)
        top_k, top_p = states.get_top_k_top_p(row_slot, slots_np)
        if top_k is not None or top_p is not None:
            logits = apply_top_k_top_p(logits.float() / scale[:, None], top_k, top_p)
            temperature = temperature / scale
            scale = torch.ones_like(scale)
        elif not self.tempered_confidence:
            scale = torch.ones_like(scale)
        position = canvases.start[row_slot] + row_position
        return row_stats(
            logits,
            temperature,
            scale,
            states.seeds.gpu[row_slot],
            (position << _STEP_BITS) + canvases.step[row_slot],
            active,
            canvases.mask_token_id,
        )

    def _picked(
        self,
        stats: RowStats,
        slots: torch.Tensor,
        slots_np: np.ndarray,
        row_start: torch.Tensor,
    ) -> torch.Tensor | None:
        """The rows chosen by policies that have no rule of the kernel's."""
        canvases = self.canvases
        groups: dict[Any, list[int]] = {}
        for i, slot in enumerate(slots_np.tolist()):
            if (policy := canvases.policies.get(slot)) is not None:
                groups.setdefault(policy, []).append(i)
        if not groups:
            return None
        picked = torch.zeros_like(stats.sample, dtype=torch.bool)
        columns = torch.arange(canvases.width, device=slots.device)
        for policy, members in groups.items():
            which = async_tensor_h2d(members, dtype=torch.int64, device=slots.device)
            first, end = row_start[which], row_start[which + 1]
            inside = columns < (end - first)[:, None]
            rows = (first[:, None] + columns).clamp(max=len(picked) - 1).to(torch.int64)
            slot = slots[which]
            view = CanvasView(
                tokens=canvases.tokens[slot],
                masked=canvases.masked[slot] & inside,
                step=canvases.step[slot],
                steps=canvases.steps.gpu[slot],
                block_length=canvases.length[slot],
                threshold=canvases.threshold.gpu[slot],
            )
            chosen = policy.select(
                PositionStats(
                    token=stats.sample[rows],
                    confidence=stats.sample_prob[rows],
                    entropy=stats.entropy[rows],
                    top1=stats.top1[rows],
                    top2=stats.top2[rows],
                ),
                view,
            )
            picked[rows[inside]] = (chosen & view.masked)[inside]
        return picked


def _from_column(values: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Moves column ``first[i]`` of row i to the front; ``[n, W]``, ``[n]``."""
    width = values.shape[1]
    columns = torch.arange(width, device=values.device) + first[:, None]
    return values.gather(1, columns.clamp(max=width - 1))
