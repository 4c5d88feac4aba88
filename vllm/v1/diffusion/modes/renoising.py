# SPDX-License-Identifier: Apache-2.0
"""Models whose open positions hold random tokens, behind a context that passes causally (DiffusionGemma)."""

from __future__ import annotations

from vllm.v1.diffusion.modes.base import Mode, Part
from vllm.v1.diffusion.modes.grid import BlockRule, known_tokens

RENOISING = Mode(
    name="renoising",
    blocks=BlockRule(from_prompt=True, cut=True, whole=True, final=known_tokens),
    planner=Part("vllm.v1.diffusion.core.renoising.RenoisingPlanner"),
    rows=Part("vllm.v1.diffusion.worker.renoising.RenoisingRows"),
    attention=Part("vllm.v1.diffusion.worker.renoising.CanvasAttention"),
    settings=Part("vllm.v1.diffusion.loops.renoising.RenoisingSettings"),
    noise=Part("vllm.v1.diffusion.canvas.renoising.UniformNoise"),
    unscored="open positions hold random tokens, which tell no position from another as masks do",
)
