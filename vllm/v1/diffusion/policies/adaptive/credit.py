# SPDX-License-Identifier: Apache-2.0
"""``credit``: tokens that keep leading gain confidence."""

from typing import ClassVar

import torch
from typing_extensions import override

from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies.base import Boost, CanvasView, PositionStats, UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import THRESHOLD

DECAY = 0.8
GAMMA = 0.2
ALPHA = 0.7
HORIZON = 96
"""Steps that are remembered. What is older is below 5 * 0.8 ** 96 = 3e-9 of credit in all, which
adding 1 in float32 loses."""

MOST_PAIRS = 1 << 23
"""Pairs of leaders that are compared at a time, 6 bytes each."""


class Credit(UnmaskingPolicy):
    """Unmasks all at or above the threshold, and the best, with credit for past leaders (dInfer).

    The credit C of a position's token is ``0.8 * C``, plus ``p1 ** 0.2`` in a step in which it
    leads; logits grow by ``0.7 * log(C + 1)``. C is kept as the leaders of past steps.
    """

    rule = Rule.THRESHOLD
    numbers: ClassVar = {"threshold": THRESHOLD}

    @override
    def make_memory(self, requests: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        shape = (requests, width, min(width, HORIZON))
        return {
            "leader": torch.zeros(shape, dtype=torch.int64, device=device),
            "credit": torch.zeros(shape, dtype=torch.float32, device=device),
        }

    @override
    def boost(self, stats: PositionStats, canvas: CanvasView) -> Boost:
        leader, credit = canvas.memory["leader"], canvas.memory["credit"]
        credit *= DECAY
        now = (canvas.step.long() % leader.shape[2])[:, None, None].expand(*leader.shape[:2], 1)
        leader.scatter_(2, now, stats.token[..., None])
        earned = torch.where(canvas.masked, stats.top1.pow(GAMMA), 0.0)
        credit.scatter_(2, now, earned[..., None])
        # Every leader is compared with every other: of wide canvases, some positions at a time.
        at_once = max(1, MOST_PAIRS // leader.shape[2] ** 2)
        parts = zip(leader.flatten(0, 1).split(at_once), credit.flatten(0, 1).split(at_once), strict=True)  # type: ignore[no-untyped-call]
        return Boost(leader, torch.cat([_growth(*part) for part in parts]).view_as(credit))


def _growth(leader: torch.Tensor, credit: torch.Tensor) -> torch.Tensor:
    """What the logits of leaders grow by, float32 ``[m, horizon]``."""
    same = leader[:, :, None] == leader[:, None, :]
    total = torch.where(same, credit[:, None, :], 0.0).sum(-1)
    # A token that has led more than once grows once.
    again = same.tril(-1).any(-1)
    return (ALPHA * (total + 1).log()).masked_fill(again, 0.0)
