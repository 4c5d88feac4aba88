# SPDX-License-Identifier: Apache-2.0
"""SDAR with experts: a Qwen3-MoE backbone that denoises blocks of masked tokens.

The weights' names and shapes are Qwen3-MoE's; attention is block-causal, which the
``block_diffusion`` generation loop sees to.
"""

from vllm.config import VllmConfig
from vllm.model_executor.models.complete_weights import CompleteWeights
from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM
from vllm.model_executor.models.qwen3_output_bias import add_output_bias


class SDARMoeForCausalLM(CompleteWeights, Qwen3MoeForCausalLM):
    """``SDARMoeForCausalLM`` checkpoints (SDAR 30B-A3B)."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if vllm_config.model_config.hf_config.attention_bias:
            add_output_bias(self, vllm_config)
