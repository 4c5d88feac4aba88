# SPDX-License-Identifier: Apache-2.0
"""Bidirectional models: every position sees the prompt and the whole canvas (LLaDA, Dream).

What a step recomputes is the cache mode's choice, as Fast-dLLM (arXiv 2505.22618) names them:
``none`` everything; ``prefix`` everything at a block's first step, then from the block on; ``dual``
everything at a block's first step, then the block alone, its keys and values written into place.
"""

from __future__ import annotations

from vllm.v1.diffusion.modes.base import Mode, Part
from vllm.v1.diffusion.modes.grid import BlockRule, nothing

MORE_SEQUENCES = 16
"""Sequences of a step beside one for each request, at most: a captured graph has room for so many.

A guided request takes two more. So eight of them are in a step, whose rows are about a thousand each.
"""

BIDIRECTIONAL = Mode(
    name="bidirectional",
    blocks=BlockRule(from_prompt=True, cut=True, final=nothing),
    planner=Part("vllm.v1.diffusion.core.bidirectional.CanvasPlanner"),
    rows=Part("vllm.v1.diffusion.worker.bidirectional.CanvasRows"),
    attention=Part("vllm.v1.diffusion.worker.bidirectional.CanvasAttention"),
    settings=Part("vllm.v1.diffusion.loops.settings.CanvasSettings"),
)
