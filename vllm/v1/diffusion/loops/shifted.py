# SPDX-License-Identifier: Apache-2.0
"""The generation loop of block-causal models whose blocks begin with an autoregressive token."""

from vllm.v1.diffusion.loops.diffusion import DiffusionLoop
from vllm.v1.diffusion.modes import ANCHORED


class ShiftedBlockDiffusionLoop(DiffusionLoop):
    """Denoises block after block, each from an autoregressive first token."""

    mode = ANCHORED
