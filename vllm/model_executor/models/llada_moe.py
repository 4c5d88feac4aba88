# SPDX-License-Identifier: Apache-2.0
"""LLaDA-MoE: an OLMoE-like mixture of experts whose attention is bidirectional.

The ``full_diffusion`` generation loop sees to the attention. From OLMoE differ the norms of
queries and keys, which are a head's, the clipping of queries, keys and values, layers with
one dense network, and the router, whose scores stay in float32 whatever the activations'
type: it decides which experts run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe import FusedMoEFactory, GateLinear
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.models.olmoe import (
    OlmoeAttention,
    OlmoeDecoderLayer,
    OlmoeForCausalLM,
    OlmoeMoE,
)
from vllm.model_executor.models.qwen2_moe import Qwen2MoeMLP
from vllm.model_executor.models.router_weights import RouterWeights
from vllm.model_executor.models.utils import WeightsMapper


class LLaDAMoEAttention(OlmoeAttention):
    """Attention with norms per head and, where the configuration asks for it, clipping."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self.clip = config.clip_qkv
        for name in ("q_norm", "k_norm"):
            norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps) if config.qk_layernorm else nn.Identity()
            setattr(self, name, norm)

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Attends over ``[tokens, hidden_size]``."""
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q = self.q_norm(q.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        k = self.k_norm(k.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        if self.clip is not None:
            q, k, v = (x.clamp(min=-self.clip, max=self.clip) for x in (q, k, v))
        q, k = self.rotary_emb(positions, q, k)
        output, _ = self.o_proj(self.attn(q, k, v))
        return output  # type: ignore[no-any-return]


class LLaDAMoEExperts(OlmoeMoE):
    """Routed experts: softmax over all, then the best few."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        nn.Module.__init__(self)
        config = vllm_config.model_config.hf_config
        self.gate = GateLinear(
            config.hidden_size,
            config.num_experts,
            out_dtype=torch.float32,
            params_dtype=torch.float32,
            prefix=f"{prefix}.gate",
        )
        self.experts = FusedMoEFactory(
            num_experts=config.num_experts,
            top_k=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            intermediate_size=config.expert_intermediate_size,
            renormalize=bool(config.norm_topk_prob),
            quant_config=vllm_config.quant_config,
            router_logits_dtype=torch.float32,
            prefix=f"{prefix}.experts",
        )


class LLaDAMoELayer(OlmoeDecoderLayer):
    """One layer: attention, then a dense network or experts."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        config = vllm_config.model_config.hf_config
        self.hidden_size = config.hidden_size
        self.self_attn = LLaDAMoEAttention(vllm_config=vllm_config, prefix=f"{prefix}.self_attn")
        mlp: Any
        if config.moe_layer_freq[int(prefix.rsplit(".", 1)[-1])]:
            mlp = LLaDAMoEExperts(vllm_config, prefix=f"{prefix}.mlp")
        else:
            mlp = Qwen2MoeMLP(
                hidden_size=config.hidden_size,
                intermediate_size=config.dense_intermediate_size,
                hidden_act=config.hidden_act,
                quant_config=vllm_config.quant_config,
                prefix=f"{prefix}.mlp",
            )
        self.mlp = mlp
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class LLaDAMoEModelLM(RouterWeights, OlmoeForCausalLM):
    """``LLaDAMoEModelLM`` checkpoints (LLaDA-MoE-7B-A1B)."""

    hf_to_vllm_mapper = OlmoeForCausalLM.hf_to_vllm_mapper | WeightsMapper(
        orig_to_new_stacked={
            ".mlp.gate_proj": (".mlp.gate_up_proj", 0),
            ".mlp.up_proj": (".mlp.gate_up_proj", 1),
        }
    )
    packed_modules_mapping = OlmoeForCausalLM.packed_modules_mapping | {
        "gate_up_proj": ["gate_proj", "up_proj"]
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        layer: Any = LLaDAMoELayer
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer)
        # The backbone has a constant for it.
        self.model.norm.variance_epsilon = vllm_config.model_config.hf_config.rms_norm_eps
