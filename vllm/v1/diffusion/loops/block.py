# SPDX-License-Identifier: Apache-2.0
"""The generation loop of block-causal masked-diffusion models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, cast

import psutil
import torch

from vllm import envs
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.diffusion.frontend.admission import check_one_block, check_sampling_params, keep_stop_tokens
from vllm.v1.diffusion.config import resolve_diffusion_config
from vllm.v1.diffusion.request.decoding import resolve_decoding
from vllm.v1.diffusion.loops.cuda_graphs import configure_graphs
from vllm.v1.diffusion.request.template import admit_template, check_room
from vllm.v1.diffusion.request.params import check_extra_args
from vllm.v1.diffusion.frontend.http_fields import check_request
from vllm.v1.generation_loop.interface import GenerationLoop

if TYPE_CHECKING:
    import torch.nn as nn

    from vllm.config import VllmConfig
    from vllm.entrypoints.serve.engine.protocol import OpenAIBaseModel
    from vllm.sampling_params import SamplingParams
    from vllm.v1.worker.gpu.model_states.interface import ModelState

logger = init_logger(__name__)

_CACHE_SLACK = 256
"""Tokens a request may hold beyond its length: a cache block's rest, look-ahead."""


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
        _refuse_unsupported(vllm_config)
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
        _check_budget(vllm_config, 2 * served)
        _configure_cpu(vllm_config)
        configure_graphs(vllm_config, served)
        _fit_cache_blocks(vllm_config, served)
        _fit_warm_up(vllm_config, served)

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

    def validate_request(self, request: OpenAIBaseModel, vllm_config: VllmConfig) -> None:
        """See :meth:`GenerationLoop.validate_request`."""
        check_request(request, vllm_config)

    def scheduler_cls(self, vllm_config: VllmConfig) -> str:
        """See :meth:`GenerationLoop.scheduler_cls`."""
        return "vllm.v1.diffusion.core.scheduler.DiffusionScheduler"

    def model_state_cls(self, model: nn.Module) -> type[ModelState]:
        """See :meth:`GenerationLoop.model_state_cls`."""
        from vllm.v1.diffusion.worker.model_state import DiffusionModelState

        return DiffusionModelState


class FullDiffusionLoop(BlockDiffusionLoop):
    """Denoises block after block; every position sees prompt and whole canvas."""

    def configure(self, vllm_config: VllmConfig) -> None:
        """See :meth:`GenerationLoop.configure`."""
        vllm_config.diffusion_config = resolve_diffusion_config(vllm_config)
        _refuse_unsupported(vllm_config)
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
        # A prompt's keys and values depend on what is generated after it, and a
        # step computes a request's whole canvas at once.
        vllm_config.cache_config.enable_prefix_caching = False
        max_model_len = vllm_config.model_config.max_model_len
        if scheduler_config.max_num_batched_tokens < max_model_len:
            logger.info("max_num_batched_tokens raised to %d, a canvas.", max_model_len)
            scheduler_config.max_num_batched_tokens = max_model_len
        _check_budget(vllm_config, max_model_len)
        _configure_cpu(vllm_config)
        block_length = vllm_config.diffusion_config.block_length
        assert block_length is not None
        configure_graphs(vllm_config, block_length)
        _fit_warm_up(vllm_config, block_length)

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


def _configure_cpu(vllm_config: VllmConfig) -> None:
    """Chooses, where the user has not, what suits a CPU; elsewhere nothing."""
    if not current_platform.is_cpu():
        return
    scheduler_config = vllm_config.scheduler_config
    if scheduler_config.async_scheduling is None:
        # Nothing overlaps, and a block that settles unforeseen costs a forward.
        scheduler_config.async_scheduling = False
    cache_config, model_config = vllm_config.cache_config, vllm_config.model_config
    if cache_config.kv_cache_memory_bytes is not None or envs.VLLM_CPU_KVCACHE_SPACE:
        return
    # Upstream reserves nearly all memory, and fails where it is not free.
    parallel_config = vllm_config.parallel_config
    per_token = (
        2
        * model_config.get_num_layers(parallel_config)
        * model_config.get_num_kv_heads(parallel_config)
        * model_config.get_head_size()
        * cast(torch.dtype, model_config.dtype).itemsize
    )
    tokens = (model_config.max_model_len + _CACHE_SLACK) * scheduler_config.max_num_seqs
    useful = per_token * tokens
    if useful < psutil.virtual_memory().available // 2:
        cache_config.kv_cache_memory_bytes = useful


def _fit_cache_blocks(vllm_config: VllmConfig, block_length: int) -> None:
    """Lets cached prefixes end with a block, unless the user has chosen the cache's blocks."""
    cache_config = vllm_config.cache_config
    # Upstream's choice, and what attention backends want a multiple of.
    default, unit = (128, 32) if current_platform.is_cpu() else (cache_config.block_size, 16)
    if cache_config.user_specified_block_size or default % block_length == 0:
        return
    cache_config.block_size = math.lcm(unit, block_length)
    # As if the user had: upstream would choose again, by the attention backend alone.
    cache_config.user_specified_block_size = True


def _fit_warm_up(vllm_config: VllmConfig, block_length: int) -> None:
    """Does without upstream's warm-up where its requests are too long.

    They have a token more than a block in their prompts, the ids of which are 0, 1, 2 and so on, and five
    blocks after that, whatever the context and the vocabulary hold.
    """
    model_config = vllm_config.model_config
    longest = 6 * block_length + 1
    if longest > model_config.max_model_len or block_length >= model_config.get_vocab_size():
        vllm_config.kernel_config.enable_jit_warmup = False


def _refuse_unsupported(vllm_config: VllmConfig) -> None:
    parallel = vllm_config.parallel_config
    unsupported = {
        "speculative_config": vllm_config.speculative_config is not None,
        "decode_context_parallel_size > 1": parallel.decode_context_parallel_size > 1,
        "prefill_context_parallel_size > 1": parallel.prefill_context_parallel_size > 1,
        "kv_transfer_config": vllm_config.kv_transfer_config is not None,
        "watermark_config": vllm_config.watermark_config is not None,
        "logits_processors": bool(vllm_config.model_config.logits_processors),
        "enable_prompt_embeds": vllm_config.model_config.enable_prompt_embeds,
    }
    for name, given in unsupported.items():
        if given:
            raise ValueError(f"{name} is not supported with diffusion models.")


def _check_budget(vllm_config: VllmConfig, widest: int) -> None:
    """Checks that the widest window fits into a step."""
    scheduler = vllm_config.scheduler_config
    budgets = {
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_num_scheduled_tokens": scheduler.max_num_scheduled_tokens,
        "long_prefill_token_threshold": scheduler.long_prefill_token_threshold or None,
    }
    for name, value in budgets.items():
        if value is not None and value < widest:
            raise ValueError(
                f"{name}={value} is too small: a step computes up to {widest} tokens for one request."
            )
