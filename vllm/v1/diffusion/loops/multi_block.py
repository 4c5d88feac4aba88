# SPDX-License-Identifier: Apache-2.0
"""The generation loop of block-causal models with several open blocks per request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from vllm.v1.diffusion.config import resolve_diffusion_config
from vllm.v1.diffusion.kernels.rules import MAX_CANVAS
from vllm.v1.diffusion.loops.diffusion import DiffusionLoop
from vllm.v1.diffusion.loops.settings import (
    BlockSettings,
    one_step_at_a_time,
    refuse_other_models,
    refuse_pipeline,
)
from vllm.v1.diffusion.modes import MULTI_BLOCK

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.generation_loop.interface import GenerationLoop


class MultiBlockDiffusionLoop(DiffusionLoop):
    """Denoises several blocks of a request at a time; a position sees up to the end of its own block."""

    mode = MULTI_BLOCK


class MultiBlockSettings(BlockSettings):
    """Blocks at multiples of their length, one step of a request at a time."""

    open_blocks = MULTI_BLOCK.blocks.open_blocks

    @override
    def configure(self, vllm_config: VllmConfig, loop: GenerationLoop, served: int) -> None:
        refuse_other_models(vllm_config)
        name = vllm_config.generation_loop
        kind, width = "several open blocks", served * self.open_blocks
        if width > MAX_CANVAS:
            raise ValueError(
                f"block_length={served} is too long for generation_loop={name!r}, which has canvases of "
                f"{self.open_blocks} blocks: they may have {MAX_CANVAS} tokens."
            )
        one_step_at_a_time(vllm_config, kind)
        refuse_pipeline(vllm_config, kind, "the first stage does not know which blocks the last one finishes")
        super().configure(vllm_config, loop, served)
        # Upstream's warm-up was not tried with canvases of several blocks.
        vllm_config.kernel_config.enable_jit_warmup = False
        # Upstream's name for the most rows of logits, and tokens, of one request in a step.
        resolve_diffusion_config(vllm_config).canvas_length = width
