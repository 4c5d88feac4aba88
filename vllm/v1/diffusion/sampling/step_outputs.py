# SPDX-License-Identifier: Apache-2.0
"""What a step hands to the runner: finished blocks and how they unmasked."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep


class StepOutputs(NamedTuple):
    """Tokens and traces of a step's requests, from each block's first new position.

    Attributes:
        tokens: int64 ``[requests, W]``; valid where the block finished.
        trace: The step that unmasked each position, counted back from the block's steps
            so far (-1 for the last, 0 for none), its token's probability when it was
            written and the entropy of its distribution, in nats, float32 ``[requests, W, 3]``;
            None where no one asks.
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
        if not canvases.flags.traced[step.slots_np].any():
            return cls(tokens)
        unmasked_at = canvases.unmasked_at[slots]
        unmasked_at = torch.where(unmasked_at < 0, 0, unmasked_at - canvases.step[slots, None])
        grades = canvases.confidence[slots], canvases.entropy[slots]
        fields = torch.stack((unmasked_at.to(torch.float32), *grades), dim=-1)
        return cls(tokens, _spread(from_column(fields, first), step, num_requests))


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
