# SPDX-License-Identifier: Apache-2.0
"""``low_confidence_linear``: the most confident positions, a rounded share of what is masked.

A2D's timetable (dllm's ``LinearAlphaScheduler``): with r steps left a step unmasks the r-th part of the
masked positions, rounded to the nearest number, halves to the even one. Steps whose share rounds to
nothing are left out, so a block may take fewer than were asked for.
"""

from __future__ import annotations

import torch

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, UnmaskingPolicy

_AHEAD = 8
"""Steps in a row among which one must unmask something, once the share is near a half."""


class LowConfidenceLinear(UnmaskingPolicy):
    """Unmasks the rounded share of a step, the most confident positions first (A2D)."""

    uses_steps = True

    def make_memory(self, requests: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        """``used``: steps of the timetable that are behind, those that were left out included."""
        return {"used": torch.zeros(requests, dtype=torch.int64, device=device)}

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        """Chooses the step's positions, bool ``[requests, width]``."""
        masked = canvas.masked.sum(dim=1)
        used = canvas.memory["used"]
        index, count = next_step(masked, used, canvas.steps.to(torch.int64))
        used.copy_(index + 1)
        order = stats.confidence.masked_fill(~canvas.masked, -torch.inf)
        rank = order.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return canvas.masked & (rank < count[:, None])

    def steps_left(self, masked: int, step: int, steps: int, block_length: int) -> int | None:
        """Steps that unmask something; None in the middle of a block, whose timetable is not known."""
        if step:
            return None
        left, used, made = torch.tensor([masked]), torch.tensor([0]), 0
        while left.item():
            index, count = next_step(left, used, torch.tensor([steps]))
            left, used, made = left - count, index + 1, made + 1
        return made


def next_step(
    masked: torch.Tensor, used: torch.Tensor, steps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The timetable's next step that unmasks something.

    Args:
        masked: Masked positions, int64 ``[R]``.
        used: Steps that are behind, likewise.
        steps: Steps of the timetable, likewise.

    Returns:
        The step's index and the number of positions that it unmasks, int64 ``[R]``.
    """
    # A share of less than a half rounds to nothing: no step before this one unmasks any.
    first = torch.maximum(used, steps - 2 * masked - _AHEAD // 2)
    index = first[:, None] + torch.arange(_AHEAD, device=masked.device)
    index = torch.minimum(index, steps[:, None] - 1)
    count = (masked[:, None].double() * share(index, steps[:, None]).double()).round().to(torch.int64)
    count = torch.minimum(count, masked[:, None])
    at = (count > 0).to(torch.int8).argmax(dim=1, keepdim=True)
    return index.gather(1, at).squeeze(1), count.gather(1, at).squeeze(1)


def share(index: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """The share of a step in float32, rounded where the published code rounds it."""
    now, then = (1 - _time(steps - index, steps)), (1 - _time(steps - index - 1, steps))
    return 1 - (1 - then) / (1 - now)


def _time(left: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    return (left.double() / steps.double()).float()
