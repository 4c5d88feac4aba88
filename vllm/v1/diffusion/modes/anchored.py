# SPDX-License-Identifier: Apache-2.0
"""Block-causal models whose finished block predicts the next one's first token (Fast-dLLM v2)."""

from __future__ import annotations

from vllm.v1.diffusion.modes.base import Mode, Part

ANCHORED = Mode(
    name="anchored",
    planner=Part("vllm.v1.diffusion.core.anchored.AnchoredPlanner"),
    rows=Part("vllm.v1.diffusion.worker.anchored.AnchoredRows"),
    attention=Part("vllm.v1.diffusion.worker.causal.BlockAttention"),
    settings=Part("vllm.v1.diffusion.loops.settings.AnchoredSettings"),
    unscored="a causal pass predicts a block's first token and a bidirectional one the others",
)
