# SPDX-License-Identifier: Apache-2.0
"""Block-causal models whose last block ends with the answer.

``EXACT``: blocks at multiples of their length, the last one cut at ``max_tokens`` (Stable-DiffCoder).
``FROM_PROMPT``: blocks count from the prompt's end, so the prompt's first one is short (BD3LM).
``FROM_PROMPT_SHIFTED``: the same where row i predicts token i + 1: each window begins with the token before
the open block.
"""

from __future__ import annotations

from dataclasses import replace

from vllm.v1.diffusion.modes.base import Part
from vllm.v1.diffusion.modes.causal import CAUSAL
from vllm.v1.diffusion.modes.grid import BlockRule, all_but_the_last

EXACT = replace(CAUSAL, name="exact", blocks=BlockRule(cut=True))

FROM_PROMPT = replace(
    CAUSAL,
    name="from_prompt",
    blocks=BlockRule(from_prompt=True, cut=True),
    settings=Part("vllm.v1.diffusion.loops.settings.PromptBlockSettings"),
)

FROM_PROMPT_SHIFTED = replace(
    FROM_PROMPT,
    name="from_prompt_shifted",
    blocks=BlockRule(from_prompt=True, cut=True, final=all_but_the_last),
    planner=Part("vllm.v1.diffusion.core.causal.ShiftedPlanner"),
    rows=Part("vllm.v1.diffusion.worker.anchored.ShiftedRows"),
)
