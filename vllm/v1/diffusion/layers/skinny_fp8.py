# SPDX-License-Identifier: Apache-2.0
"""Dense layers with float8_e4m3fn weights: our kernel for few rows, and rows that arrive quantised.

Upstream quantises a product's input in a kernel of its own, unless the model is compiled. Here the norm
before a product, or the activation between two, leaves the 8-bit rows beside what it computes anyway, and
with few rows ``skinny_linear_fp8`` reads the weights. What is computed is upstream's: a scale per token,
and a scale per tensor or output channel of the weights. Weights with scales per block stay with upstream.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm import _custom_ops as ops
from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassFP8ScaledMMLinearKernel
from vllm.model_executor.layers.fusion.quant_activation import QuantizedActivation
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsLinearMethod,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import CompressedTensorsW8A8Fp8
from vllm.model_executor.layers.quantization.fp8 import Fp8LinearMethod
from vllm.model_executor.layers.quantization.online.fp8 import (
    Fp8PerTensorOnlineLinearMethod,
    Fp8PtpcOnlineLinearMethod,
)
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    kFp8DynamicTokenSym,
    kFp8StaticTensorSym,
)
from vllm.model_executor.layers.quantization.utils.w8a8_utils import cutlass_fp8_supported
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.v1.diffusion.kernels.skinny_linear import (
    MAX_OUTPUTS,
    MAX_QUANTIZED,
    MAX_ROWS,
    TILE_ROWS,
    quantize_rows,
    skinny_linear_fp8,
)
from vllm.v1.diffusion.layers.classes import remade
from vllm.v1.diffusion.layers.forms import plain

_METHODS = (Fp8LinearMethod, Fp8PerTensorOnlineLinearMethod, Fp8PtpcOnlineLinearMethod)


class SkinnyScaledMM:
    """Upstream's product of 8-bit numbers, with few rows by our kernel; a mixin before its class."""

    prefix = "Skinny"
    arrived: torch.Tensor
    """What the kernel counts in."""
    dynamic: bool
    """Whether rows get a scale each; else all have the layer's."""
    config: Any

    def apply_weights(
        self, layer: Any, x: torch.Tensor | QuantizedActivation, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The layer's product, ``[rows, N]``; see upstream."""
        rows = self._rows(layer, x)
        if rows is None:
            upstream: torch.Tensor = super().apply_weights(layer, x, bias)  # type: ignore[misc]
            return upstream
        data, scale = rows
        if len(data) <= MAX_ROWS:
            return self._skinny(layer, data, scale, bias)
        product: torch.Tensor = self.apply_scaled_mm(  # type: ignore[attr-defined]
            A=data,
            B=layer.weight,
            out_dtype=self.config.out_dtype,
            As=scale,
            Bs=layer.weight_scale,
            bias=bias,
            output_shape=[len(data), layer.weight.shape[1]],
        )
        return product

    def gated(self, layer: Any, x: torch.Tensor) -> torch.Tensor | None:
        """``silu(gate) * up`` of a layer whose rows are both, ``[rows, N / 2]``; None with many rows."""
        rows = self._rows(layer, x) if x.dim() == 2 and len(x) <= MAX_ROWS else None
        return None if rows is None else self._skinny(layer, *rows, layer.bias, gated=True)

    def _skinny(
        self,
        layer: Any,
        data: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        gated: bool = False,
    ) -> torch.Tensor:
        weight, dtype = layer.weight.t(), self.config.out_dtype
        return skinny_linear_fp8(
            data, scale, weight, layer.weight_scale, bias, self.arrived, dtype, gated=gated
        )

    def _rows(
        self, layer: Any, x: torch.Tensor | QuantizedActivation
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The input in 8 bits and its scales; None where upstream quantises it."""
        given = x if isinstance(x, QuantizedActivation) else getattr(x, "quantized", None)
        if self.dynamic and given is not None and given.quant_key == kFp8DynamicTokenSym:
            return given.data, given.scale
        if isinstance(x, QuantizedActivation) or not takes(x) or x.dtype != self.config.out_dtype:
            return None
        if self.dynamic:
            return quantize_rows(x)
        if len(x) > MAX_ROWS:
            return None
        data, scale = self.quant_fp8(x, layer.input_scale, None)  # type: ignore[attr-defined]
        return data, scale


class EightBitHead:
    """An LM head that reads its weights in 8 bits, a scale per token id; a mixin before its class."""

    prefix = "EightBit"
    rows: torch.Tensor
    scale: torch.Tensor
    arrived: torch.Tensor

    def start(self, layer: Any) -> None:
        """Quantises the weights, and makes what the kernel counts in.

        Args:
            layer: The head, its weights loaded.
        """
        weight = layer.weight.data
        self.rows, self.scale = quantize_rows(weight)
        self.arrived = torch.zeros(-(-len(weight) // TILE_ROWS), dtype=torch.int32, device=weight.device)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Weights that were loaded into a served model are quantised anew; see upstream."""
        super().process_weights_after_loading(layer)  # type: ignore[misc]
        self.start(layer)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The logits, ``[rows, tokens]``; see upstream."""
        if not takes(x):
            upstream: torch.Tensor = super().apply(layer, x, bias)  # type: ignore[misc]
            return upstream
        data, scale = quantize_rows(x)
        if len(x) <= MAX_ROWS:
            return skinny_linear_fp8(data, scale, self.rows, self.scale, bias, self.arrived, x.dtype)
        product: torch.Tensor = ops.cutlass_scaled_mm(
            data, self.rows.t(), scale_a=scale, scale_b=self.scale, out_dtype=x.dtype, bias=bias
        )
        return product


def suits_eight_bits(head: Any) -> bool:
    """Whether the kernels compute an LM head in 8 bits.

    Args:
        head: Its weights loaded.
    """
    method = getattr(head, "quant_method", None)
    if not plain(method, UnquantizedEmbeddingMethod, "apply", "process_weights_after_loading"):
        return False
    weight = head.weight
    return bool(
        takes(weight)
        and weight.shape[0] % 16 == 0
        and weight.shape[0] <= MAX_OUTPUTS
        and weight.shape[1] % 128 == 0
        and cutlass_fp8_supported()
    )


def leave(x: torch.Tensor, rows: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Leaves a tensor's rows in 8 bits beside it, for the product that it goes to.

    Whatever makes another tensor of it loses them. A model that wrote to it in between would not, which
    no model does between a norm and a product.

    Args:
        x: ``[M, K]``.
        rows: What ``quantize_rows(x)`` returns.
    """
    x.quantized = quantised(*rows, x.dtype)  # type: ignore[attr-defined]


def quantised(data: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> QuantizedActivation:
    """Rows in 8 bits, as upstream's layers pass them on.

    Args:
        data: ``[M, K]`` float8_e4m3fn.
        scale: ``[M, 1]`` float32.
        dtype: What the rows had before.
    """
    return QuantizedActivation(data, scale, dtype, data.shape, kFp8DynamicTokenSym)


def takes(x: torch.Tensor) -> bool:
    """Whether ``quantize_rows`` takes these rows.

    Args:
        x: A product's input.
    """
    return bool(
        x.dim() == 2
        and len(x) > 0
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.shape[1] % 8 == 0
        and x.shape[1] <= MAX_QUANTIZED
        and x.stride(1) == 1
        and x.stride(0) % 8 == 0
        and x.data_ptr() % 16 == 0
    )


def product_of(layer: Any) -> Any:
    """Upstream's object that computes a layer's product of 8-bit numbers; None where there is none.

    Args:
        layer: A linear layer, its weights loaded.
    """
    owner = _owner(layer)
    return getattr(owner, "fp8_linear", None)


def _owner(layer: Any) -> Any:
    """What holds that object: the layer's method, or its scheme."""
    method = getattr(layer, "quant_method", None)
    if any(plain(method, kind, "apply") for kind in _METHODS):
        return method
    scheme = getattr(layer, "scheme", None)
    if plain(method, CompressedTensorsLinearMethod, "apply") and plain(
        scheme, CompressedTensorsW8A8Fp8, "apply_weights"
    ):
        return scheme
    return None


def suits_fp8(layer: Any, least: int) -> bool:
    """Whether the kernel computes a linear layer of 8-bit weights, and gains by it.

    Args:
        layer: Its weights loaded.
        least: Entries of the smallest weight that gains.
    """
    upstream = product_of(layer)
    if type(upstream) is not CutlassFP8ScaledMMLinearKernel:
        return False
    key = upstream.config.activation_quant_key
    if key not in (kFp8DynamicTokenSym, kFp8StaticTensorSym):
        return False
    static = getattr(layer, "input_scale", None)
    if (static is not None) != (key == kFp8StaticTensorSym) or (static is not None and static.numel() != 1):
        return False
    if getattr(layer, "input_scale_ub", None) is not None or layer.weight.dim() != 2:
        return False
    weight, scale = layer.weight.t(), layer.weight_scale
    outputs, columns = weight.shape
    return bool(
        weight.dtype == torch.float8_e4m3fn
        and weight.is_contiguous()
        and weight.data_ptr() % 16 == 0
        and outputs == upstream.logical_output_size
        and outputs % 16 == 0
        and 16 <= outputs <= MAX_OUTPUTS
        and columns % 128 == 0
        and columns <= MAX_QUANTIZED
        and weight.numel() >= least
        and scale.dtype == torch.float32
        and scale.numel() in (1, outputs)
        and scale.is_contiguous()
        and upstream.config.out_dtype in (torch.bfloat16, torch.float16)
        and (getattr(layer, "bias", None) is None or layer.bias.dtype == upstream.config.out_dtype)
    )


def use_skinny_fp8(layer: Any) -> None:
    """Lets a layer's product go to the kernel.

    Args:
        layer: One that suits.
    """
    owner = _owner(layer)
    product: Any = remade(owner.fp8_linear, SkinnyScaledMM)
    tiles = -(-layer.weight.shape[1] // TILE_ROWS)
    product.arrived = torch.zeros(tiles, dtype=torch.int32, device=layer.weight.device)
    product.dynamic = product.config.activation_quant_key == kFp8DynamicTokenSym
    owner.fp8_linear = product


def skinny_product(layer: Any) -> SkinnyScaledMM | None:
    """A layer's product, if it goes to the kernel.

    Args:
        layer: A linear layer.
    """
    product = product_of(layer)
    return product if isinstance(product, SkinnyScaledMM) else None
