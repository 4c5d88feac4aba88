# SPDX-License-Identifier: Apache-2.0
"""``low_confidence_spread``: the masks of a block spread over its steps, the most confident first.

As ``low_confidence_static``, but for blocks that hold given tokens or are short: counted is what is masked
(Stable-DiffCoder's ``get_num_transfer_tokens``), not what the block is long.
"""

from __future__ import annotations

import torch

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, UnmaskingPolicy


class LowConfidenceSpread(UnmaskingPolicy):
    """Unmasks the block's masks in equal parts, the most confident positions first (Stable-DiffCoder)."""

    uses_steps = True

    def make_memory(self, requests: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        """``masks``: masked positions that the block began with; 0 before its first step."""
        return {"masks": torch.zeros(requests, dtype=torch.int64, device=device)}

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        """Chooses the step's positions, bool ``[requests, width]``."""
        masks = canvas.memory["masks"]
        masks.copy_(torch.where(masks == 0, canvas.masked.sum(dim=1), masks))
        count = (masks // canvas.steps + (canvas.step < masks % canvas.steps)).clamp(min=1)
        order = stats.confidence.masked_fill(~canvas.masked, -torch.inf)
        rank = order.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return canvas.masked & (rank < count[:, None])

    def steps_left(self, masked: int, step: int, steps: int, block_length: int) -> int | None:
        """As many as were asked for, or as there are masks; None in the middle of a block."""
        return None if step else min(masked, steps)
