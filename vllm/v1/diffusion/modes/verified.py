# SPDX-License-Identifier: Apache-2.0
"""Block-causal models whose drafts may be verified: by themselves, with blocks of one token.

The window of a request that speculates goes on behind its block, by as many rows: one mask for every
position of the block. While the block is drafted they are computed in vain. In the next step the block holds
the draft, computed causally by token, and each mask sees what stands before its position, and itself.
"""

from __future__ import annotations

from vllm.v1.diffusion.modes.base import Mode, Part

VERIFIED = Mode(
    name="verified",
    planner=Part("vllm.v1.diffusion.core.causal.VerifiedPlanner"),
    rows=Part("vllm.v1.diffusion.worker.speculating.rows.VerifiedRows"),
    attention=Part("vllm.v1.diffusion.worker.speculating.attention.VerifiedAttention"),
    settings=Part("vllm.v1.diffusion.loops.verified.VerifiedSettings"),
    unscored="it was not tried on an engine that verifies drafts; start it without --generation-loop",
    verifies=True,
)
