# SPDX-License-Identifier: Apache-2.0
"""Rows that see the cache before their position, and themselves, where the cache holds something else.

A mask that verifies a draft stands at the position of a token of the draft, which masks behind it see. No
sequence of an attention backend holds both: here the mask's key is in the cache for a moment (on a CPU), or
beside it (on a GPU).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from vllm import _custom_ops as ops
from vllm import envs
from vllm.config import VllmConfig, get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.platforms import current_platform
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl
from vllm.v1.attention.backends.triton_attn import TritonAttentionImpl
from vllm.v1.diffusion.layers.classes import retype

_MOST_BYTES = 1 << 28
"""Keys and values that are gathered from the cache at a time."""


@dataclass(frozen=True)
class Verified:
    """Rows of n blocks of L positions: row i sees the cache before position ``start + i``, and itself.

    Attributes:
        rows: Rows of the step's batch, int64 ``[n, L]``.
        starts: First position of each block, int64 ``[n]``.
        used: Which of the blocks are verified, bool ``[n]``; the rows of the others are left as they are.
        longest: Position behind the last of the blocks, on the host, or more.
        block_table: int32 ``[n, pages]``.
        page_size: Tokens of a page.
        plans: What a backend computes once for all layers of a kind.
    """

    rows: torch.Tensor
    starts: torch.Tensor
    used: torch.Tensor
    longest: int
    block_table: torch.Tensor
    page_size: int
    plans: dict[Any, Any] = field(default_factory=dict)


def _forward(upstream: type[Any]) -> Callable[..., torch.Tensor]:
    """The forward of an implementation that derives from upstream's; no mixin, as in ``canvas_window``."""

    def forward(
        self: Any,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention to the cache, ``[T, heads, head size]``; see upstream."""
        upstream.forward(self, layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        for verified in getattr(attn_metadata, "verified", ()):
            self.verify(layer, query, key, value, kv_cache, verified, output)
        return output

    return forward


class CpuOwnKeysImpl(CPUAttentionBackendImpl):
    """Upstream's on a CPU.

    Its cache has a layout of its own. From the last position to the first, a mask's key and value take the
    place of the draft's, which no mask behind that position needs any more; the next step writes them again.
    """

    forward = _forward(CPUAttentionBackendImpl)

    def verify(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        verified: Verified,
        output: torch.Tensor,
    ) -> None:
        """Writes the rows of ``output``."""
        blocks, heads, page_size, _ = kv_cache.shape
        key_cache, value_cache = kv_cache.view(blocks, heads, 2 * page_size, -1).chunk(2, dim=2)
        kind = (self.num_heads, self.num_kv_heads, self.head_size, self.sliding_window, layer.isa)
        if kind not in verified.plans:
            verified.plans[kind] = self._plan(layer, query, verified)
        query_start_loc, table, steps = verified.plans[kind]
        for rows, slots, seq_lens, plan in steps:
            self.do_kv_cache_update(layer, key[rows], value[rows], kv_cache, slots)
            attended = query.new_empty(len(rows), *output.shape[1:])
            ops.cpu_attention_with_kv_cache(
                query=query[rows],
                key_cache=key_cache,
                value_cache=value_cache,
                output=attended,
                query_start_loc=query_start_loc,
                seq_lens=seq_lens,
                scale=self.scale,
                causal=True,
                alibi_slopes=self.alibi_slopes,  # type: ignore[arg-type]  # a tensor by now
                sliding_window=self.sliding_window,
                block_table=table,
                softcap=self.logits_soft_cap,
                scheduler_metadata=plan,
                s_aux=self.sinks,
                dynamic_causal=None,
                k_scale=layer._k_scale_float,
                v_scale=layer._v_scale_float,
                kv_cache_dtype=self.kv_cache_dtype,
            )
            output[rows] = attended

    def _plan(self, layer: Any, query: torch.Tensor, verified: Verified) -> tuple[Any, ...]:
        used = verified.used
        rows, starts, table = verified.rows[used], verified.starts[used], verified.block_table[used]
        count, size = len(rows), verified.page_size
        query_start_loc = torch.arange(count + 1, dtype=torch.int32)
        steps = []
        for i in reversed(range(rows.shape[1])) if count else ():
            position = starts + i
            slots = table.gather(1, (position // size)[:, None])[:, 0].long() * size + position % size
            seq_lens = (position + 1).to(torch.int32)
            plan = ops.cpu_attn_get_scheduler_metadata(
                num_reqs=count,
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_size,
                seq_lens=seq_lens,
                dtype=query.dtype,
                query_start_loc=query_start_loc,
                causal=True,
                sliding_window_size=self.sliding_window,
                isa=layer.isa,
                enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
                dynamic_causal=None,
                kv_cache_dtype=self.kv_cache_dtype,
            )
            steps.append((rows[:, i], slots, seq_lens, plan))
        return query_start_loc, table, steps


def _beside(
    self: Any,
    layer: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kv_cache: torch.Tensor,
    verified: Verified,
    output: torch.Tensor,
) -> None:
    """Writes the rows, from a cache of plain keys and values side by side."""
    key_cache, value_cache = torch.split(kv_cache.transpose(1, 2), self.head_size, dim=-1)
    rows = verified.rows
    attended = own_key_attention(
        query[rows], key[rows], value[rows], key_cache, value_cache, verified, self.scale
    )
    used = verified.used[:, None, None, None]
    output[rows] = torch.where(used, attended, output[rows].view_as(attended)).view_as(output[rows])


class FlashOwnKeysImpl(FlashAttentionImpl):
    """Upstream's FlashAttention; gathers what the masks see from the cache."""

    forward = _forward(FlashAttentionImpl)
    verify = _beside


class TritonOwnKeysImpl(TritonAttentionImpl):
    """Upstream's attention in Triton; gathers what the masks see from the cache."""

    forward = _forward(TritonAttentionImpl)
    verify = _beside


def own_key_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    verified: Verified,
    scale: float,
) -> torch.Tensor:
    """Attention of each row to the cache before its position, and to itself.

    Args:
        query: ``[n, L, heads, D]``.
        key: The rows' own, ``[n, L, KV heads, D]``.
        value: Likewise.
        key_cache: ``[pages, page size, KV heads, D]``; the drafts' keys are in it.
        value_cache: Likewise.
        verified: n blocks of L positions.
        scale: Of the scores.

    Returns:
        ``[n, L, heads, D]``.
    """
    count, width, heads, size = query.shape
    page_size, kv_heads = key_cache.shape[1:3]
    length, device = verified.longest, query.device
    most = max(1, _MOST_BYTES // (2 * length * kv_heads * size * key_cache.element_size()))
    positions = torch.arange(length, device=device)
    columns = torch.arange(width, device=device)
    itself = torch.eye(width, dtype=torch.bool, device=device)
    attended = torch.empty_like(query)
    for first in range(0, count, most):
        part = slice(first, first + most)
        pages = verified.block_table[part][:, positions // page_size].to(torch.int64)
        keys, values = (
            torch.cat((cache[pages, positions % page_size], own[part]), dim=1).transpose(1, 2)
            for cache, own in ((key_cache, key), (value_cache, value))
        )
        before = positions < (verified.starts[part, None] + columns)[..., None]
        sees = torch.cat((before, itself.expand(len(before), -1, -1)), dim=2)
        # The heads of a group are rows of one: no key is copied for each of them.
        rows = query[part].view(-1, width, kv_heads, heads // kv_heads, size).permute(0, 2, 3, 1, 4)
        mask = sees[:, None].repeat(1, 1, heads // kv_heads, 1)
        out = scaled_dot_product_attention(rows.flatten(2, 3), keys, values, attn_mask=mask, scale=scale)
        out = out.view(len(out), kv_heads, -1, width, size).permute(0, 3, 1, 2, 4)
        attended[part] = out.reshape(-1, width, heads, size)
    return attended


_IMPLEMENTATIONS: dict[type[Any], type[Any]] = {
    CPUAttentionBackendImpl: CpuOwnKeysImpl,
    FlashAttentionImpl: FlashOwnKeysImpl,
    TritonAttentionImpl: TritonOwnKeysImpl,
}


def use_own_keys(vllm_config: VllmConfig) -> None:
    """Prepares a model's attention layers.

    Args:
        vllm_config: The engine's, its layers built.

    Raises:
        ValueError: A layer's attention backend, its window or its cache is not supported.
    """
    for layer in get_layers_from_vllm_config(vllm_config, Attention).values():
        impl: Any = layer.impl
        if type(impl) in _IMPLEMENTATIONS.values():
            continue
        ours = _IMPLEMENTATIONS.get(type(impl))
        if ours is None:
            raise ValueError(
                f"attention_backend={layer.get_attn_backend().get_name()!r} is not supported with "
                "self-speculation; use FLASH_ATTN or TRITON_ATTN."
            )
        if layer.sliding_window is not None:
            raise ValueError("sliding windows are not supported with self-speculation.")
        if not current_platform.is_cpu() and layer.kv_cache_dtype != "auto":
            raise ValueError(
                f"kv_cache_dtype={layer.kv_cache_dtype!r} is not supported with self-speculation; leave "
                "it at 'auto'."
            )
        retype(impl, ours)
