# SPDX-License-Identifier: Apache-2.0
"""The generation loop of block-causal models that verify their own drafts."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from typing_extensions import override

from vllm.v1.diffusion.loops.cuda_graphs import refuse_graphs
from vllm.v1.diffusion.loops.diffusion import DiffusionLoop
from vllm.v1.diffusion.loops.engine_settings import check_budget
from vllm.v1.diffusion.loops.settings import (
    BlockSettings,
    one_step_at_a_time,
    refuse_other_models,
    refuse_pipeline,
)
from vllm.v1.diffusion.modes import VERIFIED

if TYPE_CHECKING:
    import torch

    from vllm.config import VllmConfig
    from vllm.v1.generation_loop.interface import GenerationLoop

_MOST_DRAFTS = 1 << 31
"""Bytes of the drafts that wait: what the model said of each token of the vocabulary."""


class VerifiedBlockDiffusionLoop(DiffusionLoop):
    """Denoises block after block; the model may verify a draft, token by token, before it is written."""

    mode = VERIFIED


class VerifiedSettings(BlockSettings):
    """Blocks at multiples of their length, one step of a request at a time, without CUDA graphs."""

    @override
    def configure(self, vllm_config: VllmConfig, loop: GenerationLoop, served: int) -> None:
        refuse_other_models(vllm_config)
        name = vllm_config.generation_loop
        kind = "self-speculation"
        one_step_at_a_time(vllm_config, kind)
        refuse_pipeline(vllm_config, kind, "the first stage does not know what the last one has drafted")
        refuse_graphs(vllm_config, kind)
        check_budget(vllm_config, 3 * served)
        model_config = vllm_config.model_config
        requests, vocabulary = vllm_config.scheduler_config.max_num_seqs, model_config.get_vocab_size()
        needed = requests * served * vocabulary * cast("torch.dtype", model_config.dtype).itemsize
        if needed > _MOST_DRAFTS:
            raise ValueError(
                f"max_num_seqs={requests} with block_length={served} would take {needed} bytes for the "
                f"drafts of generation_loop={name!r}, and there may be {_MOST_DRAFTS}: lower one of them."
            )
        super().configure(vllm_config, loop, served)
