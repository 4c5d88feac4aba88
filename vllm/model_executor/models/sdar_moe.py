# SPDX-License-Identifier: Apache-2.0
"""SDAR with experts: a Qwen3-MoE backbone that denoises blocks of masked tokens.

The weights' names and shapes are Qwen3-MoE's; attention is block-causal, which the
``block_diffusion`` generation loop sees to.
"""

from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM


class SDARMoeForCausalLM(Qwen3MoeForCausalLM):
    """``SDARMoeForCausalLM`` checkpoints (SDAR 30B-A3B)."""
