# SPDX-License-Identifier: Apache-2.0
"""SDAR: a Qwen3 backbone that denoises blocks of masked tokens.

The weights' names and shapes are Qwen3's; attention is block-causal, which the
``block_diffusion`` generation loop sees to.
"""

from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM


class SDARForCausalLM(Qwen3ForCausalLM):
    """``SDARForCausalLM`` checkpoints (SDAR 1.7B, 4B, 8B; TraDo)."""
