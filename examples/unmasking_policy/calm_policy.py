# SPDX-License-Identifier: Apache-2.0
"""``calm``: unmasks every position whose distribution is calm, the calmest at least."""

from typing import ClassVar

import torch

from vllm.v1.diffusion.plugins import THRESHOLD, CanvasView, PositionStats, UnmaskingPolicy


class Calm(UnmaskingPolicy):
    """Unmasks masked positions whose entropy is below ``diffusion_threshold`` nats."""

    numbers: ClassVar = {"threshold": THRESHOLD}

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        entropy = torch.where(canvas.masked, stats.entropy, torch.inf)
        calmest = torch.zeros_like(canvas.masked)
        calmest.scatter_(1, entropy.argmin(dim=1, keepdim=True), True)
        return calmest | (entropy < canvas.values["threshold"][:, None])
