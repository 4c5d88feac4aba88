# SPDX-License-Identifier: Apache-2.0
"""LLaDA2: a Ling-style mixture of experts that denoises blocks of masked tokens.

Layers and names of the weights are those of Ling 2.0 (upstream's ``bailing_moe``), with
one difference that decides which experts run: the router's scores stay in float32, as
in the published model, whatever the activations' type. Attention is block-causal, which
the ``block_diffusion`` generation loop sees to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.bailing_moe import (
    BailingAttention,
    BailingMLP,
    BailingMoE,
    BailingMoeBlock,
    BailingMoeForCausalLM,
    BailingMoeModel,
)
from vllm.model_executor.models.utils import (
    PPMissingLayer,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)


class LLaDA2Experts(BailingMoE):
    """Routed experts and the shared one.

    Ling rounds the router's float32 logits to the activations' type; here they reach
    the choice of experts as they are.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Runs the experts over ``[tokens, hidden_size]``."""
        router_logits, _ = self.gate(hidden_states)
        output: torch.Tensor = self.experts(hidden_states=hidden_states, router_logits=router_logits)
        return output


class LLaDA2Layer(BailingMoeBlock):
    """One layer: attention, then a dense network or experts."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        nn.Module.__init__(self)
        config = vllm_config.model_config.hf_config
        quant_config = vllm_config.quant_config
        dense = int(prefix.rsplit(".", 1)[-1]) < config.first_k_dense_replace
        network: Any = BailingMLP if dense else LLaDA2Experts
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = BailingAttention(
            config, vllm_config.cache_config, quant_config, prefix=f"{prefix}.attention"
        )
        self.mlp = network(config.intermediate_size, config, quant_config, prefix=f"{prefix}.mlp")


@support_torch_compile
class LLaDA2Model(BailingMoeModel):
    """Embedding, layers and last norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        config = vllm_config.model_config.hf_config
        self.config = config
        ranks = get_pp_group()
        self.word_embeddings = _on_rank(
            ranks.is_first_rank or (config.tie_word_embeddings and ranks.is_last_rank),
            lambda: VocabParallelEmbedding(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=f"{prefix}.word_embeddings",
            ),
        )
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: LLaDA2Layer(vllm_config, prefix),
            prefix=f"{prefix}.layers",
        )
        self.norm = _on_rank(ranks.is_last_rank, lambda: RMSNorm(config.hidden_size, eps=config.rms_norm_eps))
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states", "residual"], config.hidden_size
        )


class LLaDA2MoeModelLM(BailingMoeForCausalLM):
    """``LLaDA2MoeModelLM`` checkpoints (LLaDA2.0 and 2.1, mini and flash)."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)
        config = vllm_config.model_config.hf_config
        self.config = config
        self.model = LLaDA2Model(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors
        last = get_pp_group().is_last_rank
        self.lm_head = _on_rank(
            last,
            lambda: ParallelLMHead(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            ),
        )
        if last and config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.word_embeddings)
        self.logits_processor = LogitsProcessor(config.vocab_size)


def _on_rank(here: bool, make: Callable[[], nn.Module]) -> Any:
    """A layer, or upstream's placeholder where another pipeline rank has it."""
    return make() if here else PPMissingLayer()  # type: ignore[no-untyped-call]
