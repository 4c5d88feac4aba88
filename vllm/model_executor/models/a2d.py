# SPDX-License-Identifier: Apache-2.0
"""A2D: autoregressive backbones (Qwen3, Qwen2, Llama) that were trained to denoise.

The weights' names and shapes are the backbone's. Whether attention is bidirectional (MDLM) or
block-causal (BD3LM) no checkpoint says; the generation loop sees to either.
"""

from vllm.config import VllmConfig
from vllm.model_executor.models.complete_weights import CompleteWeights
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.qwen3_output_bias import add_output_bias


class A2DQwen3LMHeadModel(CompleteWeights, Qwen3ForCausalLM):
    """``A2DQwen3LMHeadModel`` checkpoints."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if vllm_config.model_config.hf_config.attention_bias:
            add_output_bias(self, vllm_config)


class A2DQwen2LMHeadModel(CompleteWeights, Qwen2ForCausalLM):
    """``A2DQwen2LMHeadModel`` checkpoints."""


class A2DLlamaLMHeadModel(CompleteWeights, LlamaForCausalLM):
    """``A2DLlamaLMHeadModel`` checkpoints."""
