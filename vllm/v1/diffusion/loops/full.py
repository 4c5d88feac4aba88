# SPDX-License-Identifier: Apache-2.0
"""The generation loop of bidirectional models."""

from vllm.v1.diffusion.loops.diffusion import DiffusionLoop
from vllm.v1.diffusion.modes import BIDIRECTIONAL


class FullDiffusionLoop(DiffusionLoop):
    """Denoises block after block; every position sees prompt and whole canvas."""

    mode = BIDIRECTIONAL
