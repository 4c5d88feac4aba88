# SPDX-License-Identifier: Apache-2.0
"""What a step hands to the runner: finished blocks and how they unmasked."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.message.canvas import MASK, OPEN
from vllm.v1.diffusion.sampling.step_logits import StepLogits, in_parts


class StepOutputs(NamedTuple):
    """Tokens and traces of a step's requests, from each block's first new position.

    Attributes:
        tokens: int64 ``[requests, W]``; valid where the block finished.
        trace: The step that unmasked each position, counted back from the block's steps
            so far (-1 for the last, 0 for none), its token's probability when it was
            written and the entropy of its distribution, in nats, float32 ``[requests, W, 3]``;
            None where no one asks. ``[requests, W, 4]`` where a request wants to see its canvas after
            every step: a fourth field says what stands at the position, as ``message.canvas`` reads it.
            ``[requests, W, 4 + 2 K]`` where one wants to see what the step might have written: K ids, then
            their log probabilities, NaN where a position was not open.
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
        best: torch.Tensor | None = None,
    ) -> StepOutputs:
        """Reads the canvases of the requests that denoised.

        Args:
            canvases: The canvases.
            step: The step.
            first: Column of each request's first position that was not known when
                the block began, int64 ``[R]``.
            num_requests: Requests of the batch.
            begins_open: Whether no block begins with known positions: ``first`` is 0.
            best: What :func:`candidates` says of the step.
        """
        slots = step.slots
        if begins_open:
            tokens = canvases.tokens.index_select(0, slots)
        else:
            columns = (canvases.columns + first[:, None]).clamp_(max=canvases.width - 1)
            tokens = canvases.tokens[slots[:, None], columns]
        tokens = _spread(tokens, step, num_requests)
        watched = best is not None or bool(canvases.flags.watched[step.slots_np].any())
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
        trace = torch.stack(fields, dim=-1)
        trace = from_column(trace if best is None else torch.cat((trace, best), dim=-1), first)
        if watched:
            behind = canvases.columns + first[:, None] >= canvases.length[slots, None]
            trace[..., 3:].masked_fill_(behind[..., None], float("nan"))
        return cls(tokens, _spread(trace, step, num_requests))


def candidates(logits: StepLogits, canvases: CanvasStates, step: DenoisingStep) -> torch.Tensor | None:
    """The most probable tokens at open positions, of the model's logits as they are.

    The mask token stays in the normaliser, as in a token's log probability, and is no candidate.

    Args:
        logits: The step's logits.
        canvases: The canvases.
        step: The step, whose ``active`` rows are those that were open before it.

    Returns:
        float32 ``[R, W, 2 K]``: K ids, exact below 2^24, and their log probabilities; NaN elsewhere. None
        where no request asks.
    """
    counts = canvases.flags.candidates[step.slots_np]
    if not counts.any():
        return None
    vocabulary, mask = logits.raw.shape[1], canvases.mask_token_id
    most = min(int(counts.max()), vocabulary)
    shape = (len(counts), canvases.width, 2 * most)
    found = torch.full(shape, float("nan"), dtype=torch.float32, device=step.slots.device)
    for rows_np in in_parts(step.rows_of(counts > 0), vocabulary):
        rows, request = (
            async_tensor_h2d(values, dtype=torch.int64, device=found.device)
            for values in (rows_np, step.request_np[rows_np])
        )
        values = logits.plain(rows)
        total = values.logsumexp(dim=1, keepdim=True)
        if mask >= 0:
            values[:, mask] = -torch.inf
        best, ids = values.topk(most, dim=1)
        open_ = step.active[rows] & step.covered[request]
        both = torch.cat((ids.to(torch.float32), best - total), dim=1)
        found[request, step.row_column[rows]] = both.masked_fill(~open_[:, None], float("nan"))
    return found


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
