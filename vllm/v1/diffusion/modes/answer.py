# SPDX-License-Identifier: Apache-2.0
"""Block-causal models whose last block ends with the answer.

``EXACT``: blocks at multiples of their length, the last one cut at ``max_tokens`` (Stable-DiffCoder).
``FROM_PROMPT``: blocks count from the prompt's end, so the prompt's first one is short (BD3LM).
"""

from __future__ import annotations

from dataclasses import replace

from vllm.v1.diffusion.modes.base import Part
from vllm.v1.diffusion.modes.causal import CAUSAL
from vllm.v1.diffusion.modes.grid import BlockRule

EXACT = replace(CAUSAL, name="exact", blocks=BlockRule(cut=True))

FROM_PROMPT = replace(
    CAUSAL,
    name="from_prompt",
    blocks=BlockRule(from_prompt=True, cut=True),
    settings=Part("vllm.v1.diffusion.loops.settings.PromptBlockSettings"),
)
