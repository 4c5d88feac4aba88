# SPDX-License-Identifier: Apache-2.0
"""LLaDA2: a Ling-style mixture of experts that denoises blocks of masked tokens.

Layers and names of the weights are those of Ling 2.0 (upstream's ``bailing_moe``), with
one difference that decides which experts run: the router's scores stay in float32, as
in the published model, whatever the activations' type. Attention is block-causal, which
the ``block_diffusion`` generation loop sees to.
"""

from __future__ import annotations

import torch

from vllm.config import VllmConfig
from vllm.model_executor.models.bailing_moe import BailingMoE, BailingMoeForCausalLM
from vllm.model_executor.models.complete_weights import CompleteWeights
from vllm.v1.diffusion.layers.classes import retype


class LLaDA2Experts(BailingMoE):
    """Routed experts and the shared one.

    Ling rounds the router's float32 logits to the activations' type; here they reach
    the choice of experts as they are.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Runs the experts over ``[tokens, hidden_size]``."""
        scores = self.gate(hidden_states)[0]
        output: torch.Tensor = self.experts(hidden_states=hidden_states, router_logits=scores)
        return output


class LLaDA2MoeModelLM(CompleteWeights, BailingMoeForCausalLM):
    """``LLaDA2MoeModelLM`` checkpoints (LLaDA2.0 and 2.1, mini and flash)."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        for module in self.modules():
            if isinstance(module, BailingMoE):
                retype(module, LLaDA2Experts)  # The backbone makes its layers of classes that it names.
