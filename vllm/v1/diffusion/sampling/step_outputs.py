# SPDX-License-Identifier: Apache-2.0
"""What a step hands to the runner: finished blocks and how they unmasked."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.message.canvas import MASK, OPEN


class StepOutputs(NamedTuple):
    """Tokens and traces of a step's requests, from each block's first new position.

    Attributes:
        tokens: int64 ``[requests, W]``; valid where the block finished.
        trace: The step that unmasked each position, counted back from the block's steps
            so far (-1 for the last, 0 for none), its token's probability when it was
            written and the entropy of its distribution, in nats, float32 ``[requests, W, 3]``;
            None where no one asks. ``[requests, W, 4]`` where a request wants to see its canvas after
            every step: a fourth field says what stands at the position, as ``message.canvas`` reads it.
    """

    tokens: torch.Tensor
    trace: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        canvases: CanvasStates,
        step: DenoisingStep,
        first: torch.Tensor,
        num_requests: int,
        begins_open: bool,
    ) -> StepOutputs:
        """Reads the canvases of the requests that denoised.

        Args:
            canvases: The canvases.
            step: The step.
            first: Column of each request's first position that was not known when
                the block began, int64 ``[R]``.
            num_requests: Requests of the batch.
            begins_open: Whether no block begins with known positions: ``first`` is 0.
        """
        slots = step.slots
        if begins_open:
            tokens = canvases.tokens.index_select(0, slots)
        else:
            columns = (canvases.columns + first[:, None]).clamp_(max=canvases.width - 1)
            tokens = canvases.tokens[slots[:, None], columns]
        tokens = _spread(tokens, step, num_requests)
        watched = bool(canvases.flags.watched[step.slots_np].any())
        if not watched and not canvases.flags.traced[step.slots_np].any():
            return cls(tokens)
        unmasked_at = canvases.unmasked_at[slots]
        unmasked_at = torch.where(unmasked_at < 0, 0, unmasked_at - canvases.step[slots, None])
        grades = canvases.confidence[slots], canvases.entropy[slots]
        fields = [unmasked_at.to(torch.float32), *grades]
        if watched:
            # Beside the trace, in a copy that the host reads anyway. Ids below 2^24 are exact in float32.
            held, masked = canvases.tokens[slots], canvases.masked[slots]
            held = torch.where(held == canvases.mask_token_id, MASK, held).where(masked, held)
            fields.append(torch.where(masked, OPEN - held, held).to(torch.float32))
        trace = from_column(torch.stack(fields, dim=-1), first)
        if watched:
            behind = canvases.columns + first[:, None] >= canvases.length[slots, None]
            trace[..., 3].masked_fill_(behind, float("nan"))
        return cls(tokens, _spread(trace, step, num_requests))


def _spread(values: torch.Tensor, step: DenoisingStep, num_requests: int) -> torch.Tensor:
    """Values of the R requests that denoise as values of all of a batch, 0 for the others."""
    if len(values) == num_requests:
        return values
    spread = values.new_zeros(num_requests, *values.shape[1:])
    spread[step.index] = values
    return spread


def from_column(values: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Moves column ``first[i]`` of row i to the front; ``[n, W, ...]``, ``[n]``."""
    width = values.shape[1]
    columns = torch.arange(width, device=values.device) + first[:, None]
    columns = columns.clamp_(max=width - 1)
    if values.dim() > 2:
        columns = columns[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, columns)
