# SPDX-License-Identifier: Apache-2.0
"""LLaDA2: a Ling-style mixture of experts that denoises blocks of masked tokens.

Layers and names of the weights are those of Ling 2.0 (upstream's ``bailing_moe``), with
two differences that decide which experts run: the router's scores stay in float32, as
in the published model, whatever the activations' type; and with ``expert_capacity``
(LLaDA2.2) the tokens of a block share a pool of experts. Attention is block-causal, which
the ``block_diffusion`` generation loop sees to.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm.config import VllmConfig
from vllm.model_executor.models.bailing_moe import BailingMoE, BailingMoeForCausalLM
from vllm.model_executor.models.router_weights import RouterWeights
from vllm.sequence import IntermediateTensors
from vllm.v1.diffusion.layers.block_routing import BlockRouter, RoutingBlocks
from vllm.v1.diffusion.layers.classes import retype


class LLaDA2Experts(BailingMoE):
    """Routed experts and the shared one.

    Ling rounds the router's float32 logits to the activations' type; here they reach
    the choice of experts as they are.
    """

    def route_by_block(self, capacity: int, blocks: RoutingBlocks) -> None:
        """Lets each block choose a pool of ``capacity`` experts; groups of experts have no part in it."""
        experts: Any = self.experts
        gate: Any = self.gate
        experts.router = BlockRouter(
            top_k=self.top_k,
            capacity=capacity,
            bias=gate.expert_bias,
            scaling=self.routed_scaling_factor,
            blocks=blocks,
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Runs the experts over ``[tokens, hidden_size]``."""
        experts: Any = self.experts
        if isinstance(experts.router, BlockRouter) and experts.is_monolithic:
            raise ValueError(
                "The implementation of the experts that was chosen routes tokens itself, one by one; "
                "expert_capacity needs another one: --moe-backend triton."
            )
        scores = self.gate(hidden_states)[0]
        output: torch.Tensor = experts(hidden_states=hidden_states, router_logits=scores)
        return output


class LLaDA2MoeModelLM(RouterWeights, BailingMoeForCausalLM):
    """``LLaDA2MoeModelLM`` checkpoints (LLaDA2.0, 2.1 and 2.2, mini and flash)."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        capacity: Any = getattr(self.config, "expert_capacity", None)
        self.routing_blocks: RoutingBlocks | None = None
        if capacity is not None:
            rows = max(
                vllm_config.scheduler_config.max_num_batched_tokens,
                vllm_config.compilation_config.max_cudagraph_capture_size or 0,
            )
            device: Any = vllm_config.device_config.device
            self.routing_blocks = RoutingBlocks(self.config.block_size, rows, device)
        for module in self.modules():
            if isinstance(module, BailingMoE):
                retype(module, LLaDA2Experts)  # The backbone makes its layers of classes that it names.
                assert isinstance(module, LLaDA2Experts)
                if self.routing_blocks is not None:
                    module.route_by_block(capacity, self.routing_blocks)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """Runs the network; see upstream's."""
        if self.routing_blocks is not None:
            self.routing_blocks.mark(positions)
        output: torch.Tensor | IntermediateTensors = super().forward(
            input_ids, positions, intermediate_tensors, inputs_embeds
        )
        return output
