# SPDX-License-Identifier: Apache-2.0
"""Block-causal models with several open blocks per request.

Each of them sees itself and the blocks before it, masks and all. The first ones leave when they are
finished, and the canvas slides on by as many. Their keys and values are written by the next step, which
computes them once more, before the open blocks.
"""

from __future__ import annotations

from vllm.v1.diffusion.modes.base import Mode, Part
from vllm.v1.diffusion.modes.grid import BlockRule

MULTI_BLOCK = Mode(
    name="multi_block",
    blocks=BlockRule(open_blocks=4),
    planner=Part("vllm.v1.diffusion.core.causal.OpenBlocksPlanner"),
    rows=Part("vllm.v1.diffusion.worker.causal.OpenBlocksRows"),
    attention=Part("vllm.v1.diffusion.worker.causal.BlockAttention"),
    settings=Part("vllm.v1.diffusion.loops.multi_block.MultiBlockSettings"),
    unscored="it was not tried on an engine that opens several blocks; start it without --generation-loop",
)
