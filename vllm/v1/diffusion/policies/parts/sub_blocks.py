# SPDX-License-Identifier: Apache-2.0
"""``sub_blocks``: confident positions, one part of the block after the other."""

from typing import ClassVar

import torch
from typing_extensions import override

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import THRESHOLD

SUB_BLOCK = 8
"""Positions that are open at a time: ``small_block_size`` in Fast-dLLM v2's scripts."""


class SubBlocks(UnmaskingPolicy):
    """Unmasks all above the threshold in the first open sub-block, and the best (Fast-dLLM v2)."""

    numbers: ClassVar = {"threshold": THRESHOLD}

    @override
    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        part = torch.arange(canvas.masked.shape[1], device=canvas.masked.device) // SUB_BLOCK
        first = canvas.masked.to(torch.int32).argmax(dim=1, keepdim=True)
        open_ = canvas.masked & (part == first // SUB_BLOCK)
        confidence = torch.where(open_, stats.confidence, -1.0)
        best = torch.zeros_like(open_)
        best.scatter_(1, confidence.argmax(dim=1, keepdim=True), True)
        return open_ & (best | (confidence > canvas.values["threshold"][:, None]))
