# SPDX-License-Identifier: Apache-2.0
"""A model's dense layers, and the norms between them, with our kernels where a step has few rows.

A denoising step of a few requests has 4 to 64 rows, and its time is that of reading the weights.
``skinny_linear`` reads them faster than cuBLAS does, and while a norm runs (docs/performance.md).
Steps with more rows, and layers that do not suit, stay with upstream.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vllm import envs
from vllm.config import VllmConfig
from vllm.config.compilation import CompilationMode
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, UnquantizedLinearMethod
from vllm.model_executor.layers.utils import default_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.models.llama import LlamaMLP
from vllm.model_executor.models.qwen2 import Qwen2MLP
from vllm.v1.diffusion.kernels.skinny_linear import (
    MAX_COLUMNS,
    MAX_OUTPUTS,
    MAX_ROWS,
    TILE_ROWS,
    add_rms_norm,
    skinny_linear,
)

_LEAST = 1 << 24
"""Entries of the smallest weight that was measured to gain."""


class _Skinny:
    """What both methods do with few rows; a mixin that comes before upstream's class."""

    arrived: torch.Tensor

    @classmethod
    def of(cls, method: Any, weight: torch.Tensor) -> Any:
        """A layer's method in the place of upstream's.

        Args:
            method: Upstream's; what it was set up with is kept.
            weight: The layer's, ``[N, K]``.
        """
        new = cls.__new__(cls)
        vars(new).update(vars(method))
        tiles = -(-weight.shape[0] // TILE_ROWS)
        new.arrived = torch.zeros(tiles, dtype=torch.int32, device=weight.device)
        return new

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The layer's product, ``[rows, N]``; see upstream."""
        if _few(x):
            return skinny_linear(x, layer.weight, bias, self.arrived)
        upstream: torch.Tensor = super().apply(layer, x, bias)  # type: ignore[misc]
        return upstream


class SkinnyLinearMethod(_Skinny, UnquantizedLinearMethod):
    """``UnquantizedLinearMethod`` for few rows."""


class SkinnyEmbeddingMethod(_Skinny, UnquantizedEmbeddingMethod):
    """``UnquantizedEmbeddingMethod``, of the LM head, for few rows."""


class _Gated(nn.Module):
    """The forward of both feed-forward networks; a mixin that comes before them."""

    gate_up_proj: Any
    act_fn: Any
    down_proj: Any

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's output, ``[rows, hidden]``; see upstream."""
        if not _few(x):
            upstream: torch.Tensor = super().forward(x)
            return upstream
        layer = self.gate_up_proj
        hidden = skinny_linear(x, layer.weight, layer.bias, layer.quant_method.arrived, gated=True)
        output: torch.Tensor = self.down_proj(hidden)[0]
        return output


class SkinnyQwen2MLP(_Gated, Qwen2MLP):
    """``Qwen2MLP`` (SDAR, Dream) with the activation inside of the product."""


class SkinnyLlamaMLP(_Gated, LlamaMLP):
    """``LlamaMLP`` (LLaDA) with the activation inside of the product."""


class SkinnyRMSNorm(RMSNorm):
    """``RMSNorm`` with a residual, for few rows: the product after it starts meanwhile."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The norm, and the residual where there is one; see upstream."""
        if len(args) == 2 and not kwargs:
            x, residual = args
            if residual is not None and _few(x) and x.is_contiguous() and residual.is_contiguous():
                add_rms_norm(x, residual, self.weight.data, self.variance_epsilon)
                return x, residual
        return super().forward(*args, **kwargs)  # type: ignore[no-untyped-call]


_METHODS: dict[type, type[_Skinny]] = {
    UnquantizedLinearMethod: SkinnyLinearMethod,
    UnquantizedEmbeddingMethod: SkinnyEmbeddingMethod,
}
_NETWORKS: dict[type[nn.Module], type[nn.Module]] = {
    Qwen2MLP: SkinnyQwen2MLP,
    LlamaMLP: SkinnyLlamaMLP,
}


def use_skinny_layers(vllm_config: VllmConfig, model: nn.Module, device: torch.device) -> None:
    """Lets every layer that the kernel suits use it; the others stay as they are.

    Nothing is changed but on a GPU of compute capability 9.0; nor with adapters, whose layers add to
    the products, nor where upstream compiles the model or promises equal results for every batch.

    Args:
        vllm_config: The engine's.
        model: A model whose weights are loaded.
        device: Where it runs.
    """
    if (
        device.type != "cuda"
        or torch.version.hip is not None
        or torch.cuda.get_device_capability(device) != (9, 0)
        or vllm_config.lora_config is not None
        or vllm_config.compilation_config.mode not in (None, CompilationMode.NONE)
        or envs.VLLM_BATCH_INVARIANT
    ):
        return
    suit_layers(model)


def suit_layers(model: nn.Module) -> None:
    """Changes the layers of a model that suit.

    Args:
        model: A model whose weights are loaded, on a GPU that has the kernel.
    """
    modules: list[Any] = list(model.modules())
    for module in modules:
        method = getattr(module, "quant_method", None)
        skinny = _METHODS.get(type(method))
        if skinny is not None and _suits(method, module):
            module.quant_method = skinny.of(method, module.weight)
    if not any(type(getattr(module, "quant_method", None)) is SkinnyLinearMethod for module in modules):
        return
    for module in modules:
        if type(module) is RMSNorm and _norms(module):
            module.__class__ = SkinnyRMSNorm
    for module in modules:
        network = _NETWORKS.get(type(module))
        if network is not None and _gates(module):
            module.__class__ = network


def _suits(method: Any, layer: Any) -> bool:
    """Whether the kernel computes a layer, and gains by it."""
    weight = layer.weight
    return bool(
        getattr(method, "_gemm_impl", default_unquantized_gemm) is default_unquantized_gemm
        and weight.dim() == 2
        and weight.dtype in (torch.bfloat16, torch.float16)
        and weight.is_contiguous()
        and weight.data_ptr() % 16 == 0
        and weight.shape[0] % 8 == 0
        and 16 <= weight.shape[0] <= MAX_OUTPUTS
        and weight.shape[1] % 64 == 0
        and weight.numel() >= _LEAST
    )


def _gates(network: Any) -> bool:
    """Whether a network's first product can take the activation along."""
    layer: Any = network.gate_up_proj
    return bool(
        type(network.gate_up_proj) is MergedColumnParallelLinear
        and type(layer.quant_method) is SkinnyLinearMethod
        and not layer.gather_output
        and (layer.bias is None or not layer.skip_bias_add)
        and layer.weight.shape[0] % 16 == 0
        and type(network.act_fn) is SiluAndMul
    )


def _norms(norm: Any) -> bool:
    """Whether the kernel computes a norm."""
    weight = norm.weight
    return bool(
        norm.has_weight
        and norm.pass_weight_add
        and norm.variance_size_override is None
        and weight.dtype in (torch.bfloat16, torch.float16)
        and weight.shape[0] % 8 == 0
        and weight.shape[0] <= MAX_COLUMNS
        and weight.data_ptr() % 16 == 0
    )


def _few(x: torch.Tensor) -> bool:
    """Whether the kernel takes these rows."""
    return bool(
        x.dim() == 2
        and 0 < x.shape[0] <= MAX_ROWS
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.stride(1) == 1
        and x.stride(0) % 8 == 0
        and x.data_ptr() % 16 == 0
    )
