# SPDX-License-Identifier: Apache-2.0
"""WeDLM: Qwen3 or Qwen2.5 backbones that denoise a window under their own causal attention.

The weights' names and shapes are the backbone's. Which tokens a row follows is the generation loop's to say.
"""

from vllm.config import VllmConfig
from vllm.model_executor.models.complete_weights import CompleteWeights
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.qwen3_output_bias import add_output_bias


class WeDLMForCausalLM(CompleteWeights, Qwen3ForCausalLM):
    """``WeDLMForCausalLM`` checkpoints with ``qk_norm`` (8B)."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if vllm_config.model_config.hf_config.attention_bias:
            add_output_bias(self, vllm_config)


class WeDLMQwen2ForCausalLM(CompleteWeights, Qwen2ForCausalLM):
    """``WeDLMForCausalLM`` checkpoints with ``attention_bias`` and no ``qk_norm`` (7B)."""
