# SPDX-License-Identifier: Apache-2.0
"""Stable-DiffCoder: a Llama backbone that denoises blocks of masked tokens.

The weights' names and shapes are Llama's; attention is block-causal, which the generation loop sees to.
"""

from vllm.model_executor.models.complete_weights import CompleteWeights
from vllm.model_executor.models.llama import LlamaForCausalLM


class StableDiffcoderForCausalLM(CompleteWeights, LlamaForCausalLM):
    """``StableDiffcoderForCausalLM`` checkpoints (Stable-DiffCoder 8B)."""
