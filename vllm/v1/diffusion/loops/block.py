# SPDX-License-Identifier: Apache-2.0
"""The generation loop of block-causal masked-diffusion models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vllm.logger import init_logger
from vllm.v1.diffusion.config import resolve_diffusion_config
from vllm.v1.diffusion.frontend.admission import check_sampling_params
from vllm.v1.diffusion.frontend.http_fields import check_request
from vllm.v1.diffusion.loops.cuda_graphs import configure_graphs
from vllm.v1.diffusion.loops.engine_settings import (
    check_budget,
    configure_cpu,
    fit_cache_blocks,
    fit_warm_up,
    refuse_unsupported,
)
from vllm.v1.diffusion.request.params import check_extra_args
from vllm.v1.diffusion.request.resolve import resolve_decoding
from vllm.v1.diffusion.request.template import admit_template, check_room
from vllm.v1.generation_loop.interface import GenerationLoop

if TYPE_CHECKING:
    import torch.nn as nn

    from vllm.config import VllmConfig
    from vllm.entrypoints.serve.engine.protocol import OpenAIBaseModel
    from vllm.sampling_params import SamplingParams
    from vllm.v1.worker.gpu.model_states.interface import ModelState

logger = init_logger(__name__)


class BlockDiffusionLoop(GenerationLoop):
    """Denoises block after block; a position sees up to the end of its own block."""

    own_parameters: ClassVar[frozenset[str]] = frozenset()
    """Keys of ``SamplingParams.extra_args`` that a subclass reads, without ``diffusion_``."""

    def configure(self, vllm_config: VllmConfig) -> None:
        """See :meth:`GenerationLoop.configure`."""
        config = resolve_diffusion_config(vllm_config)
        vllm_config.diffusion_config = config
        served = config.block_length
        assert served is not None
        refuse_unsupported(vllm_config)
        model_config = vllm_config.model_config
        length = model_config.max_model_len // served * served
        if length == 0:
            raise ValueError(
                f"max_model_len={model_config.max_model_len} is shorter than one block of {served} tokens."
            )
        if length != model_config.max_model_len:
            logger.info(
                "max_model_len=%d lowered to %d, a whole number of blocks of %d.",
                model_config.max_model_len,
                length,
                served,
            )
            model_config.max_model_len = length
        check_budget(vllm_config, 2 * served)
        configure_cpu(vllm_config)
        configure_graphs(vllm_config, served)
        fit_cache_blocks(vllm_config, served)
        fit_warm_up(vllm_config, served)

    def validate_params(self, params: SamplingParams, vllm_config: VllmConfig) -> None:
        """See :meth:`GenerationLoop.validate_params`."""
        check_sampling_params(params, vllm_config)
        config = resolve_diffusion_config(vllm_config)
        check_extra_args(params.extra_args, self.own_parameters, config)
        resolve_decoding(params, config)
        admit_template(params, vllm_config)
        resolve_decoding(params, config)

    def validate_prompt(self, prompt_len: int, params: SamplingParams, vllm_config: VllmConfig) -> None:
        """See :meth:`GenerationLoop.validate_prompt`."""
        check_room(params, prompt_len, vllm_config.model_config.max_model_len)

    def validate_request(self, request: OpenAIBaseModel, vllm_config: VllmConfig, server: Any = None) -> None:
        """See :meth:`GenerationLoop.validate_request`."""
        check_request(request, vllm_config, server)

    def scheduler_cls(self, vllm_config: VllmConfig) -> str:
        """See :meth:`GenerationLoop.scheduler_cls`."""
        return "vllm.v1.diffusion.core.scheduler.DiffusionScheduler"

    def model_state_cls(self, model: nn.Module) -> type[ModelState]:
        """See :meth:`GenerationLoop.model_state_cls`."""
        from vllm.v1.diffusion.worker.model_state import DiffusionModelState

        return DiffusionModelState
