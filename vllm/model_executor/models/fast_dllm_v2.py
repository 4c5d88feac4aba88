# SPDX-License-Identifier: Apache-2.0
"""Fast-dLLM v2: a Qwen2.5 backbone that denoises blocks from an autoregressive token.

The weights' names and shapes are Qwen2.5's; attention is block-causal and logits are
shifted, which the ``shifted_block_diffusion`` generation loop sees to.
"""

from vllm.model_executor.models.complete_weights import CompleteWeights
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM


class FastDLLMQwenForCausalLM(CompleteWeights, Qwen2ForCausalLM):
    """``Fast_dLLM_QwenForCausalLM`` checkpoints (Fast-dLLM v2 1.5B, 7B)."""
