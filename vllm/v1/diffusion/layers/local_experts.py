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
from vllm.v1.diffusion.layers.classes import become


class LocalExperts:
    """Numbers experts as the rank does, before upstream's class."""

    prefix = "Local"
    __slots__ = ()

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
        """As upstream's; ``expert_map`` is int32 ``[experts]``, -1 for one of another rank."""
        if expert_map is not None:
            here = expert_map[topk_ids.long()]
            topk_weights = topk_weights.masked_fill(here < 0, 0.0)
            topk_ids = here.clamp(min=0).to(topk_ids.dtype)
        own: Any = super()
        own.apply(
            output, hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts, expert_map,
            *others, **more,
        )  # fmt: skip


def use_local_experts(model: nn.Module) -> int:
    """Lets a model's experts be spread over ranks of a CPU.

    Args:
        model: A model whose weights are loaded.

    Returns:
        How many layers have such experts.

    Raises:
        ValueError: Experts are of a kind that upstream computes otherwise.
    """
    found = 0
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is None:
            continue
        if not isinstance(kernel.fused_experts, CPUUnquantizedExperts):
            raise ValueError(
                f"enable_expert_parallel=True is not supported on a CPU with "
                f"{type(kernel.fused_experts).__name__}; leave out one of the two."
            )
        become(kernel.fused_experts, LocalExperts)
        found += 1
    return found
