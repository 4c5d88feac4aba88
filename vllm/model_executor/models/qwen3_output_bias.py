# SPDX-License-Identifier: Apache-2.0
"""The bias of Qwen3's output projection, where ``attention_bias`` asks for one.

Qwen3's configuration means all four projections of attention. Upstream's layers give a bias to
three of them and leave the fourth's in the checkpoint unread.
"""

from __future__ import annotations

from torch import nn

from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.model_executor.models.qwen3 import Qwen3Attention
from vllm.model_executor.models.qwen3_moe import Qwen3MoeAttention


def add_output_bias(model: nn.Module, vllm_config: VllmConfig) -> None:
    """Gives every attention layer an output projection with a bias.

    Args:
        model: A model that was built, its weights not loaded yet.
        vllm_config: What it was built from.
    """
    for module in model.modules():
        if isinstance(module, Qwen3Attention | Qwen3MoeAttention):
            module.o_proj = RowParallelLinear(
                module.total_num_heads * module.head_dim,
                module.hidden_size,
                bias=True,
                quant_config=vllm_config.quant_config,
                prefix=module.o_proj.prefix,
            )
