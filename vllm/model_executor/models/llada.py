# SPDX-License-Identifier: Apache-2.0
"""LLaDA: a Llama backbone whose attention is bidirectional.

The ``full_diffusion`` generation loop sees to the attention; what differs from
Llama here are the weights' names.
"""

import re
from collections.abc import Iterable

import torch

from vllm.model_executor.models.complete_weights import CompleteWeights
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.utils import WeightsMapper

_LAYER = r"^model\.transformer\.blocks\.(\d+)\."
_END = r"(?=\.|$)"
"""Of a module's name: a weight's goes on, a quantisation configuration's does not."""
_NAMES = WeightsMapper(
    orig_to_new_regex={
        re.compile(r"^model\.transformer\.wte" + _END): "model.embed_tokens",
        re.compile(r"^model\.transformer\.ln_f" + _END): "model.norm",
        re.compile(r"^model\.transformer\.ff_out" + _END): "lm_head",
        re.compile(_LAYER + "attn_norm" + _END): r"model.layers.\1.input_layernorm",
        re.compile(_LAYER + "([qkv]_proj)" + _END): r"model.layers.\1.self_attn.\2",
        re.compile(_LAYER + "attn_out" + _END): r"model.layers.\1.self_attn.o_proj",
        re.compile(_LAYER + "ff_norm" + _END): r"model.layers.\1.post_attention_layernorm",
        re.compile(_LAYER + "ff_proj" + _END): r"model.layers.\1.mlp.gate_proj",
        re.compile(_LAYER + "up_proj" + _END): r"model.layers.\1.mlp.up_proj",
        re.compile(_LAYER + "ff_out" + _END): r"model.layers.\1.mlp.down_proj",
    }
)


class LLaDAModelLM(CompleteWeights, LlamaForCausalLM):
    """``LLaDAModelLM`` checkpoints (LLaDA-8B, LLaDA-1.5)."""

    hf_to_vllm_mapper = _NAMES | LlamaForCausalLM.hf_to_vllm_mapper

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads a checkpoint in the published layout."""
        loaded: set[str] = super().load_weights(_NAMES.apply(weights))
        return loaded
