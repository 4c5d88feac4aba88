# SPDX-License-Identifier: Apache-2.0
"""The generation loop of models that denoise random tokens behind a causal context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from vllm.config.compilation import CompilationMode
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.diffusion.config import resolve_diffusion_config
from vllm.v1.diffusion.loops.cuda_graphs import refuse_graphs
from vllm.v1.diffusion.loops.diffusion import DiffusionLoop
from vllm.v1.diffusion.loops.engine_settings import check_budget, configure_cpu, fit_warm_up
from vllm.v1.diffusion.loops.settings import Settings, one_step_at_a_time, refuse_pipeline
from vllm.v1.diffusion.modes import RENOISING
from vllm.v1.diffusion.request.resolve import resolve_decoding

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.generation_loop.interface import GenerationLoop


class RenoisingDiffusionLoop(DiffusionLoop):
    """Denoises canvas after canvas, each a whole one of random tokens (DiffusionGemma)."""

    mode = RENOISING


class RenoisingSettings(Settings):
    """Canvases that begin where the prompt ends; one step of a request at a time."""

    @override
    def configure(self, vllm_config: VllmConfig, loop: GenerationLoop, served: int) -> None:
        refuse_pipeline(
            vllm_config, "renoising diffusion", "the first stage takes along what the last one predicted"
        )
        resolve_decoding(None, resolve_diffusion_config(vllm_config))  # Do the defaults fit?
        one_step_at_a_time(vllm_config, "renoising diffusion")
        check_budget(vllm_config, 2 * served)
        configure_cpu(vllm_config)
        _configure_device(vllm_config)
        fit_warm_up(vllm_config, served)
        # The length of answers that a checkpoint suggests is no limit of the server's.
        vllm_config.model_config.override_generation_config.setdefault("max_new_tokens", None)


def _configure_device(vllm_config: VllmConfig) -> None:
    """Chooses what batches of causal and bidirectional sequences can run with on a GPU."""
    attention, compilation = vllm_config.attention_config, vllm_config.compilation_config
    if attention.backend == AttentionBackendEnum.FLASHINFER:
        raise ValueError(
            "attention_backend='FLASHINFER' is not supported with renoising diffusion, whose batches mix "
            "causal and bidirectional sequences; use FLASH_ATTN or TRITON_ATTN."
        )
    if attention.backend is None:
        attention.use_non_causal = True
    refuse_graphs(vllm_config, "renoising diffusion")
    if current_platform.is_cuda_alike() and compilation.mode is None:
        compilation.mode = CompilationMode.NONE
