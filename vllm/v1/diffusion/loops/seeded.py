# SPDX-License-Identifier: Apache-2.0
"""The generation loop of models that write causally and denoise blocks."""

from vllm.v1.diffusion.loops.diffusion import DiffusionLoop
from vllm.v1.diffusion.modes import SEEDED


class SeededBlockDiffusionLoop(DiffusionLoop):
    """Denoises block after block over a causal context; writes and verifies causally where asked."""

    mode = SEEDED
