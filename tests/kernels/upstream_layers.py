# SPDX-License-Identifier: Apache-2.0
"""Layers of upstream's, made small."""

from __future__ import annotations

from typing import Any

import torch

from vllm.model_executor.layers.linear import LinearBase, ReplicatedLinear
from vllm.model_executor.layers.utils import default_unquantized_gemm
from vllm.utils.torch_utils import set_default_torch_dtype

WIDTH, INNER = 128, 256


def make(kind: Any, *args: Any, dtype: torch.dtype = torch.bfloat16, **kwargs: Any) -> Any:
    """A module of upstream's, its weights drawn, its products computed as on a GPU."""
    generator = torch.Generator().manual_seed(1)
    with set_default_torch_dtype(dtype):
        module: Any = kind(*args, **kwargs)
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.data.copy_(
                torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
            )
    for part in module.modules():
        if isinstance(part, LinearBase):
            part.quant_method._gemm_impl = default_unquantized_gemm  # type: ignore[attr-defined]
    return module.requires_grad_(False)


def linear(rows: int = 96, columns: int = WIDTH, **kwargs: Any) -> Any:
    return make(ReplicatedLinear, columns, rows, bias=False, **kwargs)
