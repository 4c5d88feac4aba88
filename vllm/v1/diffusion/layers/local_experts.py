# SPDX-License-Identifier: Apache-2.0
"""Experts on several ranks of a CPU: each computes those that it has.

Upstream's experts for a CPU take a token's experts by their number among all, whatever a rank has of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from typing_extensions import override

from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.v1.diffusion.layers.classes import retype


def local(
    topk_weights: torch.Tensor, topk_ids: torch.Tensor, expert_map: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a rank's part of what tokens are routed to: weights, 0 for other ranks' experts, and numbers.

    Args:
        topk_weights: ``[T, k]``.
        topk_ids: Numbers among all experts, ``[T, k]``.
        expert_map: The rank's number of each expert, -1 for one of another rank, int32 ``[experts]``.
    """
    own = expert_map[topk_ids.long()]
    return topk_weights.masked_fill(own < 0, 0.0), own.clamp(min=0).to(topk_ids.dtype)


def _local_kind(kind: type[CPUUnquantizedExperts]) -> type[CPUUnquantizedExperts]:
    """Experts of a kind, of which a rank has some."""

    class LocalExperts(kind):  # type: ignore[valid-type,misc]
        @override
        def apply(
            self,
            output: torch.Tensor,
            hidden_states: torch.Tensor,
            w1: torch.Tensor,
            w2: torch.Tensor,
            topk_weights: torch.Tensor,
            topk_ids: torch.Tensor,
            activation: Any,
            global_num_experts: int,
            expert_map: torch.Tensor | None,
            *others: Any,
            **more: Any,
        ) -> None:
            if expert_map is not None:
                topk_weights, topk_ids = local(topk_weights, topk_ids, expert_map)
            super().apply(
                output, hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts,
                expert_map, *others, **more,
            )  # fmt: skip

    return LocalExperts


def use_local_experts(model: nn.Module) -> None:
    """Lets a model's experts be spread over ranks of a CPU.

    Args:
        model: A model whose weights are loaded.

    Raises:
        ValueError: Experts are of a kind that upstream computes otherwise.
    """
    kinds: dict[type, type] = {}
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is None:
            continue
        kind = type(kernel.fused_experts)
        if not issubclass(kind, CPUUnquantizedExperts):
            raise ValueError(
                f"enable_expert_parallel=True is not supported on a CPU with {kind.__name__}, which is for "
                "quantised weights."
            )
        if kind not in kinds:
            kinds[kind] = _local_kind(kind)
        retype(kernel.fused_experts, kinds[kind])
