# SPDX-License-Identifier: Apache-2.0
"""Block-causal models: a position sees up to the end of its own block (SDAR, LLaDA2)."""

from __future__ import annotations

from vllm.v1.diffusion.modes.base import Mode, Part

CAUSAL = Mode(
    name="causal",
    planner=Part("vllm.v1.diffusion.core.causal.BlockPlanner"),
    rows=Part("vllm.v1.diffusion.worker.causal.BlockRows"),
    attention=Part("vllm.v1.diffusion.worker.causal.BlockAttention"),
    settings=Part("vllm.v1.diffusion.loops.settings.BlockSettings"),
    unscored=None,
    elastic_rows=True,
)
