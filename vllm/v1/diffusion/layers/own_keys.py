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

from vllm.config import VllmConfig, get_layers_from_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl
from vllm.v1.attention.backends.triton_attn import TritonAttentionImpl
from vllm.v1.diffusion.layers.cache_attention import (
    CpuSequences,
    at_a_time,
    cpu_attend,
    cpu_sequences,
    grouped_attention,
    plain_cache,
    use_implementations,
)


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


# Rows that are computed together, the slots of their own keys, and what they see.
_Step = tuple[torch.Tensor, torch.Tensor, CpuSequences]


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
        kind = (self.num_heads, self.num_kv_heads, self.head_size, self.sliding_window, layer.isa)
        if kind not in verified.plans:
            verified.plans[kind] = self._plan(layer, query.dtype, verified)
        for rows, slots, sequences in verified.plans[kind]:
            self.do_kv_cache_update(layer, key[rows], value[rows], kv_cache, slots)
            cpu_attend(self, layer, query, kv_cache, rows, output, sequences)

    def _plan(
        self, layer: Any, dtype: torch.dtype, verified: Verified
    ) -> list[tuple[torch.Tensor, torch.Tensor, CpuSequences]]:
        used, size = verified.used, verified.page_size
        rows, starts, table = verified.rows[used], verified.starts[used], verified.block_table[used]
        steps = []
        for i in reversed(range(rows.shape[1])) if len(rows) else ():
            position = starts + i
            slots = table.gather(1, (position // size)[:, None])[:, 0].long() * size + position % size
            seq_lens = (position + 1).to(torch.int32)
            sequences = cpu_sequences(self, layer, dtype, seq_lens, table, self.sliding_window)
            steps.append((rows[:, i], slots, sequences))
        return steps


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
    rows, caches = verified.rows, plain_cache(kv_cache, self.head_size)
    attended = own_key_attention(query[rows], key[rows], value[rows], *caches, verified, self.scale)
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
    count, width = query.shape[:2]
    page_size = key_cache.shape[1]
    length, device = verified.longest, query.device
    most = at_a_time(length, key_cache)
    positions = torch.arange(length, device=device)
    columns = torch.arange(width, device=device)
    itself = torch.eye(width, dtype=torch.bool, device=device)
    attended = torch.empty_like(query)
    for first in range(0, count, most):
        part = slice(first, first + most)
        pages = verified.block_table[part][:, positions // page_size].to(torch.int64)
        keys, values = (
            torch.cat((cache[pages, positions % page_size], own[part]), dim=1)
            for cache, own in ((key_cache, key), (value_cache, value))
        )
        before = positions < (verified.starts[part, None] + columns)[..., None]
        sees = torch.cat((before, itself.expand(len(before), -1, -1)), dim=2)
        attended[part] = grouped_attention(query[part], keys, values, sees, scale)
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
    layers = get_layers_from_vllm_config(vllm_config, Attention).values()
    if any(layer.sliding_window is not None for layer in layers):
        raise ValueError("sliding windows are not supported with self-speculation.")
    use_implementations(layers, _IMPLEMENTATIONS, "self-speculation")
