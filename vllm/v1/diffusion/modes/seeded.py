# SPDX-License-Identifier: Apache-2.0
"""Models that write causally too: a pass that is causal by token makes a block's first token.

Prompts and finished blocks are encoded by causal passes (Nemotron-Labs-Diffusion). The last row of
such a pass, the *seed*, begins the next block; the passes that denoise the block see all of it.
Blocks count from the prompt's end. The same passes make an autoregressive model (blocks of one token)
and a verifier of drafts. Every window is one sequence, causal or bidirectional.
"""

from __future__ import annotations

from vllm.v1.diffusion.modes.base import Mode, Part
from vllm.v1.diffusion.modes.grid import BlockRule

SEEDED = Mode(
    name="seeded",
    blocks=BlockRule(from_prompt=True, cut=True, whole=True),
    planner=Part("vllm.v1.diffusion.core.seeded.SeededPlanner"),
    rows=Part("vllm.v1.diffusion.worker.seeded.SeededRows"),
    attention=Part("vllm.v1.diffusion.worker.token_causal.TokenCausalAttention"),
    settings=Part("vllm.v1.diffusion.loops.settings.SeededSettings"),
    unscored="a causal pass predicts a block's first token and a bidirectional one the others",
)
