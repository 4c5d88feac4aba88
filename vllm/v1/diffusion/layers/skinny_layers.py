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

from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)
from vllm.model_executor.layers.utils import default_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.v1.diffusion.kernels.skinny_linear import (
    MAX_COLUMNS,
    MAX_OUTPUTS,
    MAX_ROWS,
    TILE_ROWS,
    add_rms_norm,
    quantize_rows,
    skinny_linear,
)
from vllm.v1.diffusion.layers.forms import GatedForm, plain
from vllm.v1.diffusion.layers.skinny_fp8 import leave, quantised, skinny_product, suits_fp8, takes

_LEAST = 1 << 24
"""Entries of the smallest weight that was measured to gain."""


class SkinnyMethod:
    """What a layer's method does with few rows; a mixin that comes before the method's class."""

    prefix = "Skinny"
    arrived: torch.Tensor

    def start(self, weight: torch.Tensor) -> None:
        """Makes what the kernel counts in.

        Args:
            weight: The layer's, ``[N, K]``.
        """
        tiles = -(-weight.shape[0] // TILE_ROWS)
        self.arrived = torch.zeros(tiles, dtype=torch.int32, device=weight.device)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The layer's product, ``[rows, N]``; see upstream."""
        if _few(x):
            return skinny_linear(x, layer.weight, bias, self.arrived)
        upstream: torch.Tensor = super().apply(layer, x, bias)  # type: ignore[misc]
        return upstream


class SkinnyNetwork(nn.Module):
    """A feed-forward network with the activation inside of the product; a mixin before its class."""

    prefix = "Skinny"
    form: GatedForm
    """The network's parts."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The network's output, ``[rows, hidden]``; of the argument of the network's class."""
        (x,) = (*args, *kwargs.values())
        hidden = self._hidden(x)
        if hidden is None:
            upstream: torch.Tensor = super().forward(*args, **kwargs)
            return upstream
        output: torch.Tensor = self.form.down(hidden)[0]
        return output

    def _hidden(self, x: torch.Tensor) -> Any:
        """What the second product takes; None where upstream computes it."""
        layer = self.form.gate_up
        product = skinny_product(layer)
        if product is None:
            if not _few(x):
                return None
            return skinny_linear(x, layer.weight, layer.bias, layer.quant_method.arrived, gated=True)
        hidden = product.gated(layer, x)
        if hidden is not None or x.dim() != 2 or not _takes_rows(self.form.down):
            return hidden
        both = layer(x)[0]
        return quantised(*quantize_rows(both, gated=True), both.dtype)


class SkinnyNorm(nn.Module):
    """A norm with a residual, for few rows: the product after it starts meanwhile; a mixin likewise."""

    prefix = "Skinny"
    weight: Any
    variance_epsilon: float
    quantises: bool
    """Whether a product takes what it gives in 8 bits."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The norm, and the residual where there is one; see upstream."""
        if len(args) == 2 and not kwargs:
            x, residual = args
            if residual is not None and self._takes(x) and x.is_contiguous() and residual.is_contiguous():
                rows = add_rms_norm(x, residual, self.weight.data, self.variance_epsilon, self.quantises)
                if rows is not None:
                    leave(x, rows)
                return x, residual
        return super().forward(*args, **kwargs)

    def _takes(self, x: torch.Tensor) -> bool:
        """Whether the kernel norms these rows. Many gain only by what is quantised with them."""
        return takes(x) if self.quantises else _few(x)


def suits(layer: Any) -> bool:
    """Whether the kernel computes a linear layer or an LM head, and gains by it.

    Args:
        layer: Its weights loaded.
    """
    if suits_fp8(layer, _LEAST):
        return True
    method = getattr(layer, "quant_method", None)
    if not any(
        plain(method, kind, "apply") for kind in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
    ):
        return False
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


def gates(form: GatedForm) -> bool:
    """Whether a network's first product can take the activation along.

    Args:
        form: The network's parts, the first product with the kernel already.
    """
    layer = form.gate_up
    eight = skinny_product(layer) is not None
    return bool(
        plain(layer, MergedColumnParallelLinear, "forward")
        and (eight or isinstance(layer.quant_method, SkinnyMethod))
        and not layer.gather_output
        and (layer.bias is None or not layer.skip_bias_add)
        and layer.weight.shape[1 if eight else 0] % 16 == 0
        and plain(form.act, SiluAndMul, "forward", "forward_cuda", "forward_native")
    )


def norms(norm: Any) -> bool:
    """Whether the kernel computes a norm.

    Args:
        norm: Any module.
    """
    if not plain(norm, RMSNorm, "forward", "forward_cuda", "forward_native"):
        return False
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


def widths(layers: list[Any]) -> set[int]:
    """How wide the rows are that products take in 8 bits.

    Args:
        layers: Linear layers, with their kernels.
    """
    products = [(layer, skinny_product(layer)) for layer in layers]
    return {layer.weight.shape[0] for layer, product in products if product is not None and product.dynamic}


def _takes_rows(layer: Any) -> bool:
    """Whether a network's second product takes rows in 8 bits, as it gets them."""
    product = skinny_product(layer)
    return bool(
        product is not None
        and product.dynamic
        and plain(layer, RowParallelLinear, "forward")
        and layer.input_is_parallel
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
