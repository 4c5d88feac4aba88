# SPDX-License-Identifier: Apache-2.0
"""The generation loop of block-causal models."""

from vllm.v1.diffusion.loops.diffusion import DiffusionLoop
from vllm.v1.diffusion.modes import CAUSAL


class BlockDiffusionLoop(DiffusionLoop):
    """Denoises block after block; a position sees up to the end of its own block."""

    mode = CAUSAL
