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

from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention.attention import (
    get_attention_context,
    unified_attention_with_output,
)
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.quantization.utils.quant_utils import GroupShape
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl
from vllm.v1.diffusion.kernels.qk_norm_rope_cache import MAX_HEAD_SIZE, qk_norm_rope_cache
from vllm.v1.diffusion.layers.forms import AttentionForm, plain


class FusedAttention(nn.Module):
    """The forward of an attention layer with fewer kernels; a mixin that comes before the layer's class."""

    prefix = "Fused"
    form: AttentionForm
    """The layer's parts."""
    stores: bool
    """Whether the cache is one that the kernel can write to."""
    eight: bool
    """Whether it holds 8 bits."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Attention output, ``[rows, hidden]``; of the arguments of the layer's class."""
        form, attn = self.form, self.form.attn
        hidden_states, positions = form.bind(args, kwargs)
        qkv, _ = form.qkv(hidden_states)
        cache = self._cache() if self.stores else ()
        queries = qk_norm_rope_cache(
            qkv,
            attn.num_heads,
            attn.num_kv_heads,
            form.q_norm.weight if form.q_norm is not None else None,
            form.k_norm.weight if form.k_norm is not None else None,
            form.q_norm.variance_epsilon if form.q_norm is not None else 0.0,
            form.rotary.cos_sin_cache,
            positions,
            *cache,
            **(self._scales() if cache and self.eight else {}),
        )
        q, k, v = qkv.unflatten(-1, (-1, attn.head_size)).split(
            [attn.num_heads, attn.num_kv_heads, attn.num_kv_heads], dim=1
        )
        if cache:
            attended = qkv.new_empty(len(qkv), attn.num_heads, attn.head_size)
            unified_attention_with_output(q if queries is None else queries, k, v, attended, attn.layer_name)
            attended = attended.flatten(1)
        else:
            attended = attn(q.flatten(1), k.flatten(1), v.flatten(1))
        output: torch.Tensor = form.out(attended)[0]
        return output

    def _cache(self) -> tuple[torch.Tensor, ...]:
        """The layer's keys, values and slots; nothing in a run that has no cache yet."""
        attn = self.form.attn
        _, _, pages, slots = get_attention_context(attn.layer_name)
        if slots is None:
            return ()
        return *torch.split(pages.transpose(1, 2), attn.head_size, dim=-1), slots

    def _scales(self) -> dict[str, torch.Tensor]:
        """Of an 8-bit cache: what keys and values are multiples of, and queries where they have 8 bits."""
        attn = self.form.attn
        scales = {"key_scale": attn._k_scale, "value_scale": attn._v_scale}
        return scales if attn.query_quant is None else scales | {"query_scale": attn._q_scale}


def fits(form: AttentionForm) -> bool:
    """Whether the kernel computes a layer.

    Args:
        form: The layer's parts, their weights loaded.
    """
    rotary, size = form.rotary, form.attn.head_size
    if not plain(rotary, RotaryEmbedding, "forward", "forward_cuda", "forward_native"):
        return False
    dtype, rotated = rotary.cos_sin_cache.dtype, rotary.cos_sin_cache.shape[1]
    return bool(
        rotary.is_neox_style
        and rotary.head_size == size
        and rotary.rotary_dim == rotated
        and size % 4 == 0
        and size <= MAX_HEAD_SIZE
        and rotated % 4 == 0
        and dtype in (torch.bfloat16, torch.float16)
        and (form.q_norm is None or _norms(form, size, dtype))
    )


def _norms(form: AttentionForm, size: int, dtype: torch.dtype) -> bool:
    """Whether the norms are the kernel's: of a head each, with factors, and alike."""
    both = (form.q_norm, form.k_norm)
    return form.q_norm.variance_epsilon == form.k_norm.variance_epsilon and all(
        plain(norm, RMSNorm, "forward", "forward_cuda", "forward_native")
        and norm.has_weight
        and norm.variance_size_override is None
        and norm.weight.shape == (size,)
        and norm.weight.dtype == dtype
        for norm in both
    )


def eight_bits(form: AttentionForm) -> bool:
    """Whether the layer's cache holds float8_e4m3fn, keys and values with a scale each.

    Args:
        form: The layer's parts.
    """
    attn = form.attn
    quantises = attn.query_quant
    return bool(
        attn.impl.kv_cache_dtype in ("fp8", "fp8_e4m3")
        and all(scale.numel() == 1 for scale in (attn._k_scale, attn._v_scale, attn._q_scale))
        and (quantises is None or (quantises.static and quantises.group_shape == GroupShape.PER_TENSOR))
    )


def stores(form: AttentionForm) -> bool:
    """Whether the layer's cache holds plain keys and values side by side, as FlashAttention's does.

    Args:
        form: The layer's parts.
    """
    attn, dtype = form.attn, form.rotary.cos_sin_cache.dtype
    return bool(
        plain(attn, Attention, "forward")
        and plain(attn.impl, FlashAttentionImpl, "do_kv_cache_update")
        and attn.impl.attn_type == AttentionType.DECODER
        and (attn.impl.kv_cache_dtype in ("auto", str(dtype).removeprefix("torch.")) or eight_bits(form))
        and attn.kv_sharing_target_layer_name is None
    )
