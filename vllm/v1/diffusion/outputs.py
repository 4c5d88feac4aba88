# SPDX-License-Identifier: Apache-2.0
"""What a step hands to the runner: settled blocks and how they settled."""

from __future__ import annotations

import torch

from vllm.v1.diffusion.canvas import CanvasStates
from vllm.v1.diffusion.failures import with_failures
from vllm.v1.diffusion.step import DenoisingStep


class StepOutputs:
    """Tokens and traces of a step's requests, from each block's first new position.

    Attributes:
        tokens: int64 ``[requests, W]``; valid where the block settled.
        trace: The step that settled each position, counted back from the block's steps
            so far (-1 for the last, 0 for none), and its token's probability when it was
            written, float32 ``[requests, W, 2]``; None where no request denoises.
    """

    def __init__(self, num_requests: int, canvases: CanvasStates) -> None:
        self.canvases = canvases
        shape = (num_requests, canvases.width)
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=canvases.device)
        self.trace: torch.Tensor | None = None

    def read(self, step: DenoisingStep, first: torch.Tensor, failed: dict[int, str]) -> None:
        """Reads the canvases of the requests that denoised.

        Args:
            step: The step.
            first: Column of each request's first position that was not known when
                the block began, int64 ``[R]``.
            failed: Why a policy failed, by the request's number; its trace says so.
        """
        canvases, slots = self.canvases, step.slots
        self.tokens[step.index] = from_column(canvases.tokens[slots], first)
        self.trace = torch.zeros(*self.tokens.shape, 2, device=canvases.device)
        settled_at = canvases.settled_at[slots]
        settled_at = torch.where(settled_at < 0, 0, settled_at - canvases.step[slots, None])
        for field, values in enumerate((settled_at, canvases.confidence[slots])):
            self.trace[step.index, :, field] = from_column(values.to(torch.float32), first)
        if failed:
            self.trace = with_failures(self.trace, {int(step.requests[i]): why for i, why in failed.items()})


def from_column(values: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Moves column ``first[i]`` of row i to the front; ``[n, W, ...]``, ``[n]``."""
    width = values.shape[1]
    columns = torch.arange(width, device=values.device) + first[:, None]
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, columns.clamp(max=width - 1)]
