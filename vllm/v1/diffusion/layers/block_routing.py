# SPDX-License-Identifier: Apache-2.0
"""A router that lets the tokens of a block choose among few experts (LLaDA2.2's ``expert_capacity``).

A block's tokens share a pool of experts, so a step that is bound by reading weights reads fewer of them.
"""

from __future__ import annotations

import torch

from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.layers.fused_moe.config import RoutingMethodType
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter


class RoutingBlocks:
    """Which rows of a forward belong to one block, for all layers of a model.

    The numbers stand at a fixed address, which captured graphs read.

    Attributes:
        length: Tokens per block; blocks begin at multiples of it.
    """

    def __init__(self, length: int, most_rows: int, device: torch.device | None) -> None:
        """Makes it.

        Args:
            length: Tokens per block.
            most_rows: Rows that a forward may have.
            device: Where the model runs; None for torch's default.
        """
        self.length = length
        self._numbers = torch.zeros(most_rows, dtype=torch.int64, device=device)

    def mark(self, positions: torch.Tensor) -> None:
        """Notes the blocks of a forward's rows.

        A request's rows follow each other and begin with a block, since windows do. A row of padding
        is a block of its own: what it says must not enter the pool of any other.

        Args:
            positions: Positions of the rows, int64 ``[N]``.
        """
        begins = positions % self.length == 0
        padding = get_forward_context().is_padding if is_forward_context_available() else None
        if padding is not None:
            begins = begins | padding[: len(positions)]
        numbers = begins.cumsum(0)
        # The first row begins a block whatever its position.
        self._numbers[: len(positions)] = numbers - numbers[:1]

    def of(self, rows: int) -> torch.Tensor:
        """Number of the block of each of the forward's rows, from 0, int64 ``[rows]``."""
        return self._numbers[:rows]


class BlockRouter(BaseRouter):
    """Pools experts by block, then chooses for each token within the pool; everything in float32.

    Equal scores go to the expert of the lower id.
    """

    def __init__(
        self,
        top_k: int,
        capacity: int,
        bias: torch.Tensor,
        scaling: float,
        blocks: RoutingBlocks,
    ) -> None:
        """Makes the router.

        Args:
            top_k: Experts per token.
            capacity: Experts per block.
            bias: What decides beside the score, and does not enter the weights, float32 ``[experts]``.
            scaling: Factor of the weights.
            blocks: Which rows share a pool.
        """
        super().__init__(top_k=top_k, global_num_experts=len(bias))
        self.capacity = capacity
        self.bias = bias
        self.scaling = scaling
        self.blocks = blocks

    @property
    def routing_method_type(self) -> RoutingMethodType:
        """No kernel of upstream's knows the method."""
        return RoutingMethodType.Custom

    def _compute_routing(
        self,
        hidden_states: torch.Tensor,
        router_logits: torch.Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        score = router_logits.float().sigmoid()
        weights, ids = block_routing(
            score, self.bias, self.blocks.of(len(score)), self.capacity, self.top_k, self.scaling
        )
        return weights, ids.to(torch.int32 if indices_type is None else indices_type)


def block_routing(
    score: torch.Tensor,
    bias: torch.Tensor,
    block: torch.Tensor,
    capacity: int,
    top_k: int,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chooses experts; nothing waits for the device.

    Args:
        score: The router's scores, float32 ``[N, E]``.
        bias: Added to them where experts are compared, float32 ``[E]``.
        block: Number of each row's block, below N, int64 ``[N]``.
        capacity: Experts per block: those of the highest score of any of its rows.
        top_k: Experts per row, of its block's.
        scaling: Factor of the weights, which sum to 1 without it.

    Returns:
        Weights, float32 ``[N, top_k]``, and ids, int64 ``[N, top_k]``.
    """
    corrected = score + bias
    rows = block[:, None].expand_as(corrected)
    best = torch.full_like(corrected, -torch.inf).scatter_reduce_(0, rows, corrected, "amax")
    pool = best.argsort(dim=1, descending=True, stable=True)[:, :capacity]
    pooled = torch.zeros_like(corrected, dtype=torch.bool).scatter_(1, pool, True)[block]
    order = corrected.masked_fill(~pooled, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ids = order[:, :top_k].contiguous()
    weights = score.gather(1, ids)
    return weights / (weights.sum(dim=1, keepdim=True) + 1e-20) * scaling, ids
