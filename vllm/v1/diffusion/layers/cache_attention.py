# SPDX-License-Identifier: Apache-2.0
"""Attention to a backend's cache for rows that see other keys than the backend gives them.

What ``canvas_window`` and ``own_keys`` share: the layers whose backend becomes one of ours, a row's call of
upstream's operator on a CPU, and torch's attention over gathered keys elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from vllm import _custom_ops as ops
from vllm import envs
from vllm.model_executor.layers.attention import Attention
from vllm.platforms import current_platform
from vllm.v1.diffusion.layers.classes import retype

_MOST_BYTES = 1 << 28
"""Keys and values that are gathered from the cache at a time."""


def use_implementations(
    layers: Iterable[Attention], implementations: Mapping[type[Any], type[Any]], purpose: str
) -> None:
    """Makes layers' attention ours.

    Args:
        layers: The layers.
        implementations: A class of ours for each of upstream's that is supported.
        purpose: What for, in words that follow "not supported with".

    Raises:
        ValueError: A layer's attention backend or its cache is not supported.
    """
    for layer in layers:
        impl: Any = layer.impl
        if type(impl) in implementations.values():
            continue
        ours = implementations.get(type(impl))
        if ours is None:
            raise ValueError(
                f"attention_backend={layer.get_attn_backend().get_name()!r} is not supported with {purpose}; "
                "use FLASH_ATTN or TRITON_ATTN."
            )
        if not current_platform.is_cpu() and layer.kv_cache_dtype != "auto":
            raise ValueError(
                f"kv_cache_dtype={layer.kv_cache_dtype!r} is not supported with {purpose}; leave it at "
                "'auto'."
            )
        retype(impl, ours)


@dataclass(frozen=True)
class CpuSequences:
    """Sequences of which one row each is computed, the last, for all layers of a kind.

    Attributes:
        query_start_loc: int32 ``[n + 1]``.
        seq_lens: Keys of each, int32 ``[n]``.
        block_table: int32 ``[n, pages]``.
        window: Keys that a row sees at most; -1 for all.
        plan: What upstream's operator for a CPU computes once.
    """

    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_table: torch.Tensor
    window: int
    plan: Any


def cpu_sequences(
    impl: Any,
    layer: Any,
    dtype: torch.dtype,
    seq_lens: torch.Tensor,
    block_table: torch.Tensor,
    window: int,
) -> CpuSequences:
    """Return sequences with their plan.

    Args:
        impl: A layer's ``CPUAttentionBackendImpl``.
        layer: The layer.
        dtype: Of its queries.
        seq_lens: int32 ``[n]``.
        block_table: int32 ``[n, pages]``.
        window: As of :class:`CpuSequences`.
    """
    query_start_loc = torch.arange(len(seq_lens) + 1, dtype=torch.int32)
    plan = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(seq_lens),
        num_heads=impl.num_heads,
        num_kv_heads=impl.num_kv_heads,
        head_dim=impl.head_size,
        seq_lens=seq_lens,
        dtype=dtype,
        query_start_loc=query_start_loc,
        causal=True,
        sliding_window_size=window,
        isa=layer.isa,
        enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
        dynamic_causal=None,
        kv_cache_dtype=impl.kv_cache_dtype,
    )
    return CpuSequences(query_start_loc, seq_lens, block_table, window, plan)


def cpu_attend(
    impl: Any,
    layer: Any,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    rows: torch.Tensor,
    output: torch.Tensor,
    sequences: CpuSequences,
) -> None:
    """Writes rows of ``output``, each the last of a sequence of its own.

    Args:
        impl: The layer's ``CPUAttentionBackendImpl``.
        layer: The layer.
        query: ``[T, heads, D]``.
        kv_cache: The layer's.
        rows: int64 ``[n]``.
        output: ``[T, heads, D]``.
        sequences: Of :func:`cpu_sequences`.
    """
    blocks, heads, size, _ = kv_cache.shape
    key_cache, value_cache = kv_cache.view(blocks, heads, 2 * size, -1).chunk(2, dim=2)
    attended = query.new_empty(len(rows), *output.shape[1:])
    ops.cpu_attention_with_kv_cache(
        query=query[rows],
        key_cache=key_cache,
        value_cache=value_cache,
        output=attended,
        query_start_loc=sequences.query_start_loc,
        seq_lens=sequences.seq_lens,
        scale=impl.scale,
        causal=True,
        alibi_slopes=impl.alibi_slopes,
        sliding_window=sequences.window,
        block_table=sequences.block_table,
        softcap=impl.logits_soft_cap,
        scheduler_metadata=sequences.plan,
        s_aux=impl.sinks,
        dynamic_causal=None,
        k_scale=layer._k_scale_float,
        v_scale=layer._v_scale_float,
        kv_cache_dtype=impl.kv_cache_dtype,
    )
    output[rows] = attended


def plain_cache(kv_cache: torch.Tensor, head_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a GPU's cache, ``[pages, page size, KV heads, D]`` each."""
    key_cache, value_cache = torch.split(kv_cache.transpose(1, 2), head_size, dim=-1)
    return key_cache, value_cache


def at_a_time(length: int, cache: torch.Tensor) -> int:
    """How many sequences of ``length`` keys to gather at a time from a cache such as above."""
    kv_heads, size = cache.shape[2:]
    return max(1, _MOST_BYTES // (2 * length * kv_heads * size * cache.element_size()))


def grouped_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sees: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention of rows to gathered keys.

    Args:
        query: ``[n, L, heads, D]``.
        key: ``[n, K, KV heads, D]``.
        value: Likewise.
        sees: Which keys a row sees, bool ``[n, 1 or L, K]``; None for all.
        scale: Of the scores.

    Returns:
        ``[n, L, heads, D]``.
    """
    width, heads, size = query.shape[1:]
    kv_heads = key.shape[2]
    # The heads of a group are rows of one: no key is copied for each of them.
    rows = query.view(-1, width, kv_heads, heads // kv_heads, size).permute(0, 2, 3, 1, 4).flatten(2, 3)
    mask = None
    if sees is not None:
        mask = sees[:, None] if sees.shape[1] == 1 else sees[:, None].repeat(1, 1, heads // kv_heads, 1)
    out = scaled_dot_product_attention(
        rows, key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask, scale=scale
    )
    out = out.view(len(out), kv_heads, -1, width, size).permute(0, 3, 1, 2, 4)
    return out.reshape(-1, width, heads, size)
