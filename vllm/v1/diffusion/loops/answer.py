# SPDX-License-Identifier: Apache-2.0
"""The generation loops of block-causal models whose last block ends with the answer."""

from vllm.v1.diffusion.loops.diffusion import DiffusionLoop
from vllm.v1.diffusion.modes import EXACT, FROM_PROMPT, FROM_PROMPT_SHIFTED


class ExactBlockDiffusionLoop(DiffusionLoop):
    """Denoises block after block at multiples of their length; the last one may be short."""

    mode = EXACT


class PromptBlockDiffusionLoop(DiffusionLoop):
    """Denoises block after block, counted from the prompt's end."""

    mode = FROM_PROMPT


class ShiftedPromptBlockDiffusionLoop(DiffusionLoop):
    """The same where row i predicts token i + 1."""

    mode = FROM_PROMPT_SHIFTED
