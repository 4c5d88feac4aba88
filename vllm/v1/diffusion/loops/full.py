# SPDX-License-Identifier: Apache-2.0
"""The generation loop of bidirectional masked-diffusion models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.v1.diffusion.config import resolve_diffusion_config
from vllm.v1.diffusion.frontend.admission import check_one_block, keep_stop_tokens
from vllm.v1.diffusion.loops.block import BlockDiffusionLoop
from vllm.v1.diffusion.loops.cuda_graphs import configure_graphs
from vllm.v1.diffusion.loops.engine_settings import (
    check_budget,
    configure_cpu,
    fit_warm_up,
    refuse_parts_of_prompts,
    refuse_unsupported,
)
from vllm.v1.generation_loop.interface import GenerationLoop

if TYPE_CHECKING:
    import torch.nn as nn

    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.worker.gpu.model_states.interface import ModelState

logger = init_logger(__name__)


class FullDiffusionLoop(BlockDiffusionLoop):
    """Denoises block after block; every position sees prompt and whole canvas."""

    def configure(self, vllm_config: VllmConfig) -> None:
        """See :meth:`GenerationLoop.configure`."""
        vllm_config.diffusion_config = resolve_diffusion_config(vllm_config)
        refuse_unsupported(vllm_config)
        scheduler_config = vllm_config.scheduler_config
        ours = (GenerationLoop.forward, GenerationLoop.compute_logits)
        if (type(self).forward, type(self).compute_logits) != ours:
            # Where a window begins depends on the step before it, which a plug-in may fail.
            if scheduler_config.async_scheduling:
                raise ValueError(
                    "async_scheduling=True is not supported with full diffusion by a loop that "
                    "overrides forward or compute_logits; leave it unset or False."
                )
            scheduler_config.async_scheduling = False
        refuse_parts_of_prompts(vllm_config)
        max_model_len = vllm_config.model_config.max_model_len
        if scheduler_config.max_num_batched_tokens < max_model_len:
            logger.info("max_num_batched_tokens raised to %d, a canvas.", max_model_len)
            scheduler_config.max_num_batched_tokens = max_model_len
        check_budget(vllm_config, max_model_len)
        configure_cpu(vllm_config)
        block_length = vllm_config.diffusion_config.block_length
        assert block_length is not None
        configure_graphs(vllm_config, block_length)
        fit_warm_up(vllm_config, block_length)

    def validate_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        """See :meth:`GenerationLoop.validate_params`."""
        super().validate_params(params, vllm_config)
        check_one_block(params, vllm_config)
        if params.stop_token_ids and params.structured_outputs is None:
            keep_stop_tokens(params, vllm_config)

    def scheduler_cls(self, vllm_config: VllmConfig) -> str:
        """See :meth:`GenerationLoop.scheduler_cls`."""
        return "vllm.v1.diffusion.core.full_scheduler.FullDiffusionScheduler"

    def model_state_cls(self, model: nn.Module) -> type[ModelState]:
        """See :meth:`GenerationLoop.model_state_cls`."""
        from vllm.v1.diffusion.worker.full_model_state import FullDiffusionModelState

        return FullDiffusionModelState
