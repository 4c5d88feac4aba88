# SPDX-License-Identifier: Apache-2.0
"""Repetition, frequency and presence penalties on a canvas.

Upstream's state counts the prompt and the emitted output. What has unmasked in the open
block counts as output too, for every open position, whichever side of it. Tokens that
unmask in one step do not see each other: all rows are drawn from one forward pass.
"""

from __future__ import annotations

import torch

from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.worker.gpu.sample.penalties import PenaltiesState, apply_penalties
from vllm.v1.worker.gpu.states import RequestState


def penalize(
    logits: torch.Tensor,
    row_slot: torch.Tensor,
    row_column: torch.Tensor,
    slots: torch.Tensor,
    state: PenaltiesState,
    canvases: CanvasStates,
    requests: RequestState,
) -> None:
    """Applies the penalties, in place.

    Args:
        logits: float32 ``[M, V]``.
        row_slot: Slot of each row, ``[M]``.
        row_column: Column of each row's position, int64 ``[M]``.
        slots: Slots of the requests with penalties, ``[P]``, distinct.
        state: Upstream's counts and parameters; unchanged afterwards.
        canvases: The canvases.
        requests: The runner's request state.
    """
    slot = slots.to(torch.int64)[:, None]
    columns = torch.arange(canvases.width, device=logits.device)
    position = canvases.start[slot] + columns
    fresh = ~canvases.masked[slots] & (columns < canvases.length[slot])
    # Before that, positions are prompt or have been emitted, and are counted.
    fresh &= position >= requests.total_len.gpu[slot]
    vocab_size = state.output_bin_counts.shape[1]
    where = (slot * vocab_size + canvases.tokens[slots]).view(-1)
    count = fresh.view(-1).to(torch.int32)
    counts = state.output_bin_counts.view(-1)
    counts.scatter_add_(0, where, count)
    own = canvases.tokens[row_slot, row_column][:, None]
    unpenalized = logits.gather(1, own)
    no_drafts = torch.zeros_like(row_slot)
    apply_penalties(
        logits,
        row_slot,
        no_drafts,
        no_drafts,
        state.repetition_penalty.gpu,
        state.frequency_penalty.gpu,
        state.presence_penalty.gpu,
        state.prompt_bin_mask,
        state.output_bin_counts,
    )
    _forget_own(logits, own, unpenalized, row_slot, row_column, state, canvases)
    counts.scatter_add_(0, where, -count)


def _forget_own(
    logits: torch.Tensor,
    own: torch.Tensor,
    unpenalized: torch.Tensor,
    row_slot: torch.Tensor,
    row_column: torch.Tensor,
    state: PenaltiesState,
    canvases: CanvasStates,
) -> None:
    """An unmasked position that may be rewritten is not penalised for its own token."""
    slot = row_slot.to(torch.int64)[:, None]
    unmasked = ~canvases.masked[row_slot, row_column][:, None]
    repetition, frequency, presence = (
        penalty.gpu[slot]
        for penalty in (state.repetition_penalty, state.frequency_penalty, state.presence_penalty)
    )
    others = (state.output_bin_counts[slot, own] - 1).clamp(min=0)
    prompted = (state.prompt_bin_mask[slot, own // 32] >> (own % 32)) & 1
    scale = torch.where((others > 0) | (prompted > 0), repetition, 1.0)
    value = unpenalized * torch.where(unpenalized > 0, 1.0 / scale, scale)
    value = value - frequency * others - presence * (others > 0)
    logits.scatter_(1, own, torch.where(unmasked, value, logits.gather(1, own)))
