# SPDX-License-Identifier: Apache-2.0
"""The generation loop of models that denoise random tokens behind a causal context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from vllm.config.compilation import CompilationMode, CUDAGraphMode
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.diffusion.config import resolve_diffusion_config
from vllm.v1.diffusion.loops.diffusion import DiffusionLoop
from vllm.v1.diffusion.loops.engine_settings import check_budget, configure_cpu, fit_warm_up
from vllm.v1.diffusion.loops.settings import Settings
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
        if vllm_config.parallel_config.pipeline_parallel_size > 1:
            raise ValueError(
                "pipeline_parallel_size > 1 is not supported with renoising diffusion: the first stage takes "
                "along what the last one predicted."
            )
        resolve_decoding(None, resolve_diffusion_config(vllm_config))  # Do the defaults fit?
        scheduler_config = vllm_config.scheduler_config
        if scheduler_config.async_scheduling:
            raise ValueError(
                "async_scheduling=True is not supported with renoising diffusion: what a step computes "
                "depends on the step before it."
            )
        scheduler_config.async_scheduling = False
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
    if not current_platform.is_cuda_alike():
        return
    if compilation.cudagraph_mode not in (None, CUDAGraphMode.NONE):
        raise ValueError(
            f"cudagraph_mode={compilation.cudagraph_mode.name!r} is not supported with renoising diffusion; "
            "leave it unset or 'NONE'."
        )
    compilation.cudagraph_mode = CUDAGraphMode.NONE
    if compilation.mode is None:
        compilation.mode = CompilationMode.NONE
