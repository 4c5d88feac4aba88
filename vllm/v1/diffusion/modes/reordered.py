# SPDX-License-Identifier: Apache-2.0
"""Causal models that denoise a window, whose unmasked tokens are moved before its masks (WeDLM).

Every row sees the rows before it. So a mask sees what is unmasked behind it too, while each row keeps the
position of its token. The window begins at the first masked position: what is unmasked before it leaves
at once, and is final after the next step, in which it comes first.
"""

from __future__ import annotations

from vllm.v1.diffusion.modes.base import Mode, Part
from vllm.v1.diffusion.modes.grid import BlockRule, known_tokens

REORDERED = Mode(
    name="reordered",
    blocks=BlockRule(from_prompt=True, cut=True, whole=True, final=known_tokens, slides=True),
    planner=Part("vllm.v1.diffusion.core.renoising.RenoisingPlanner"),
    rows=Part("vllm.v1.diffusion.worker.reordered.ReorderedRows"),
    attention=Part("vllm.v1.diffusion.worker.reordered.CausalAttention"),
    settings=Part("vllm.v1.diffusion.loops.reordered.ReorderedSettings"),
    unscored="a mask sees what is unmasked behind it, so no order of masks gives a chain rule of its own",
)
