# SPDX-License-Identifier: Apache-2.0
"""Keeps a router's weights as a checkpoint stores them, where a GPU multiplies those into float32.

Scores of a router stay in float32. Upstream keeps its weights in float32 for that, and the product leaves
the tensor cores. Most checkpoints store bfloat16. A product of two such numbers is exact in float32, and the
sum is float32's: the scores are the same but for the order in which they are added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch

from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe.router.gate_linear import GateLinear
from vllm.model_executor.models.complete_weights import CompleteWeights


class RouterWeights(CompleteWeights):
    """The first base of a mixture of experts whose router's scores are float32."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **own: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **own)
        self._activations = cast(torch.dtype, vllm_config.model_config.dtype)
        if vllm_config.load_config.load_format == "dummy":
            for gate in self._routers().values():
                keep_as(gate, self._activations, self._activations)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads a checkpoint, or any part of it later; see ``CompleteWeights``."""
        first = not self._complete
        return super().load_weights(self._kept(weights) if first else weights)

    def _kept(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The same weights; the type of a router's is set before it is loaded."""
        routers = self._routers()
        for name, tensor in weights:
            if name in routers:
                keep_as(routers[name], tensor.dtype, self._activations)
            yield name, tensor

    def _routers(self) -> dict[str, GateLinear]:
        """Routers by the names of their weights."""
        return {
            f"{path}.weight": module
            for path, module in self.named_modules()
            if isinstance(module, GateLinear)
        }


def keep_as(gate: GateLinear, stored: torch.dtype, activations: torch.dtype) -> None:
    """Keeps a router's weight in the type that a checkpoint stores, where nothing is lost by it.

    Upstream rounds other activations than bfloat16 to the weight's type, and the scores with them.

    Args:
        gate: A router with weights in float32, before they are loaded and any graph is captured.
        stored: The checkpoint's type.
        activations: The type of what the router gets.
    """
    able = gate._router_gemm_cublas_capable and gate.out_dtype == torch.float32
    if able and stored == activations == torch.bfloat16 and gate.weight.dtype == torch.float32:
        gate.weight.data = gate.weight.data.to(stored)
        gate.allow_cublas_router_gemm = True
