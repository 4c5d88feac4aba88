# SPDX-License-Identifier: Apache-2.0
"""Attention layers with all that comes before attention itself in one kernel.

A denoising step of one request has few rows: what it costs beyond reading the weights is the
number of its kernels. The norms of queries and keys, where a model has them, the rotation and the
write to the cache are three or four of them upstream; here they are one, ``qk_norm_rope_cache``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vllm.config import VllmConfig
from vllm.config.compilation import CompilationMode
from vllm.model_executor.layers.attention.attention import (
    get_attention_context,
    unified_attention_with_output,
)
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.models.llama import LlamaAttention
from vllm.model_executor.models.qwen2 import Qwen2Attention
from vllm.model_executor.models.qwen3 import Qwen3Attention
from vllm.model_executor.models.qwen3_moe import Qwen3MoeAttention
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl
from vllm.v1.diffusion.kernels.qk_norm_rope_cache import MAX_HEAD_SIZE, qk_norm_rope_cache


class _Fused(nn.Module):
    """The forward of all classes; a mixin that comes before them."""

    attn: Any
    qkv_proj: Any
    o_proj: Any
    rotary_emb: Any
    num_heads: int
    num_kv_heads: int
    head_dim: int
    q_size: int
    kv_size: int
    stores: bool
    """Whether the cache is one that the kernel can write to."""

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Attention output, ``[rows, hidden]``; see upstream's class."""
        qkv, _ = self.qkv_proj(hidden_states)
        cache = self._cache() if self.stores else ()
        q_norm, k_norm = getattr(self, "q_norm", None), getattr(self, "k_norm", None)
        qk_norm_rope_cache(
            qkv,
            self.num_heads,
            self.num_kv_heads,
            q_norm.weight if q_norm is not None else None,
            k_norm.weight if k_norm is not None else None,
            q_norm.variance_epsilon if q_norm is not None else 0.0,
            self.rotary_emb.cos_sin_cache,
            positions,
            *cache,
        )
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        if cache:
            attended = qkv.new_empty(len(qkv), self.q_size)
            q, k, v, out = (x.view(len(qkv), -1, self.head_dim) for x in (q, k, v, attended))
            unified_attention_with_output(q, k, v, out, self.attn.layer_name)
        else:
            attended = self.attn(q, k, v)
        output: torch.Tensor = self.o_proj(attended)[0]
        return output

    def _cache(self) -> tuple[torch.Tensor, ...]:
        """The layer's keys, values and slots; nothing in a run that has no cache yet."""
        _, _, pages, slots = get_attention_context(self.attn.layer_name)
        if slots is None:
            return ()
        return *torch.split(pages.transpose(1, 2), self.head_dim, dim=-1), slots


class FusedLlamaAttention(_Fused, LlamaAttention):
    """``LlamaAttention`` (LLaDA) with fewer kernels."""


class FusedQwen2Attention(_Fused, Qwen2Attention):
    """``Qwen2Attention`` (Dream, Fast-dLLM v2) with fewer kernels."""


class FusedQwen3Attention(_Fused, Qwen3Attention):
    """``Qwen3Attention`` (SDAR) with fewer kernels."""


class FusedQwen3MoeAttention(_Fused, Qwen3MoeAttention):
    """``Qwen3MoeAttention`` (SDAR's mixture of experts) with fewer kernels."""


_FUSED: dict[type[nn.Module], type[nn.Module]] = {
    LlamaAttention: FusedLlamaAttention,
    Qwen2Attention: FusedQwen2Attention,
    Qwen3Attention: FusedQwen3Attention,
    Qwen3MoeAttention: FusedQwen3MoeAttention,
}


def fuse_attention(vllm_config: VllmConfig, model: nn.Module) -> None:
    """Lets every layer that the kernel fits use it; the others stay as they are.

    Nothing is changed but on a CUDA GPU; nor where upstream compiles the model, and fuses by itself.

    Args:
        vllm_config: The engine's.
        model: A model whose weights are loaded.
    """
    compiled = vllm_config.compilation_config.mode not in (None, CompilationMode.NONE)
    if compiled or not current_platform.is_cuda():
        return
    modules: list[Any] = list(model.modules())
    for module in modules:
        fused = _FUSED.get(type(module))
        if fused is not None and _fits(module):
            module.__class__ = fused
            module.stores = _stores(module.attn, module.rotary_emb.cos_sin_cache.dtype)


def _fits(attention: Any) -> bool:
    """Whether the kernel computes this layer."""
    rotary = attention.rotary_emb
    dtype = rotary.cos_sin_cache.dtype
    q_norm = getattr(attention, "q_norm", None)
    return bool(
        type(rotary) is RotaryEmbedding
        and rotary.is_neox_style
        and rotary.rotary_dim == attention.head_dim
        and attention.head_dim % 4 == 0
        and attention.head_dim <= MAX_HEAD_SIZE
        and dtype in (torch.bfloat16, torch.float16)
        and (q_norm is None or q_norm.weight.dtype == dtype)
    )


def _stores(attn: Any, dtype: torch.dtype) -> bool:
    """Whether the layer's cache holds plain keys and values side by side, as FlashAttention's does."""
    return bool(
        type(attn.impl) is FlashAttentionImpl
        and attn.impl.attn_type == AttentionType.DECODER
        and attn.impl.kv_cache_dtype in ("auto", str(dtype).removeprefix("torch."))
        and attn.kv_sharing_target_layer_name is None
    )
