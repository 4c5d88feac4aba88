# SPDX-License-Identifier: Apache-2.0
"""Qwen3's attention with the norms of queries and keys and the rotation in one kernel.

A denoising step of one request has few rows: what it costs beyond reading the weights is the
number of its kernels. Upstream fuses these three where it compiles the model; here they are fused
in the model itself, so that a graph can be captured without compilation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vllm import _custom_ops as ops
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.models.qwen3 import Qwen3Attention
from vllm.model_executor.models.qwen3_moe import Qwen3MoeAttention
from vllm.platforms import current_platform

_HEAD_SIZES = (64, 128, 256)  # those of upstream's kernel


class _Fused(nn.Module):
    """The forward of both classes; a mixin that comes before them."""

    attn: Any
    qkv_proj: Any
    o_proj: Any
    q_norm: Any
    k_norm: Any
    rotary_emb: Any
    num_heads: int
    num_kv_heads: int
    head_dim: int
    q_size: int
    kv_size: int

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Attention output, ``[rows, hidden]``; see ``Qwen3Attention``."""
        qkv, _ = self.qkv_proj(hidden_states)
        rotary = self.rotary_emb
        ops.fused_qk_norm_rope(
            qkv,
            self.num_heads,
            self.num_kv_heads,
            self.num_kv_heads,
            self.head_dim,
            self.q_norm.variance_epsilon,
            self.q_norm.weight,
            self.k_norm.weight,
            rotary.cos_sin_cache,
            rotary.is_neox_style,
            positions,
        )
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        output: torch.Tensor = self.o_proj(self.attn(q, k, v))[0]
        return output


class FusedQwen3Attention(_Fused, Qwen3Attention):
    """``Qwen3Attention`` with fewer kernels."""


class FusedQwen3MoeAttention(_Fused, Qwen3MoeAttention):
    """``Qwen3MoeAttention`` with fewer kernels."""


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    Qwen3Attention: FusedQwen3Attention,
    Qwen3MoeAttention: FusedQwen3MoeAttention,
}


def fuse_attention(model: nn.Module) -> None:
    """Lets every layer that the kernel fits use it; the others stay as they are.

    Args:
        model: A model that was built, its weights not loaded yet.
    """
    if not current_platform.is_cuda():
        return
    for module in model.modules():
        fused = _FUSED.get(type(module))
        if fused is not None and _fits(module):
            module.__class__ = fused


def _fits(attention: Any) -> bool:
    """Whether upstream's kernel computes this layer."""
    rotary = attention.rotary_emb
    return bool(
        attention.head_dim in _HEAD_SIZES
        and type(rotary) is RotaryEmbedding
        and rotary.rotary_dim == attention.head_dim
        and attention.q_norm.weight.dtype in (torch.bfloat16, torch.float16)
        and rotary.cos_sin_cache.dtype == attention.q_norm.weight.dtype
    )
