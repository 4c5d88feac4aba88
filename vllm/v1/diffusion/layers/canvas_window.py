# SPDX-License-Identifier: Apache-2.0
"""Sliding-window layers for open canvases: the window lies before the canvas, not around each row.

An attention backend bounds a bidirectional row by its own position: later rows of a canvas lose context,
and in a canvas longer than the window rows lose each other. In DiffusionGemma every row of a canvas sees
the last ``window - 1`` positions before the canvas, and all of the canvas. Both are the same while
context and canvas fit into the window; canvases that do not are computed here, on the backend's cache.
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
class Canvases:
    """Open canvases of one width whose rows see other keys than a backend's window gives them.

    Attributes:
        rows: Rows of the step's batch, int64 ``[n, C]``.
        ends: Position behind each canvas, int32 ``[n]``.
        shortest: The least of ``ends``, on the host.
        block_table: int32 ``[n, pages]``.
        plans: What a backend computes once for all layers of a kind.
    """

    rows: torch.Tensor
    ends: torch.Tensor
    shortest: int
    block_table: torch.Tensor
    plans: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CanvasWindows:
    """A step's canvases, beside a backend's metadata as ``canvas_windows``.

    Attributes:
        groups: By width.
        only: Whether the step has no other rows.
    """

    groups: tuple[Canvases, ...]
    only: bool


def _forward(upstream: type[Any]) -> Callable[..., torch.Tensor]:
    """The forward of an implementation that derives from upstream's.

    No mixin: a layer's implementation can become one of another class only if that has one base.
    """

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
        windows: CanvasWindows | None = getattr(attn_metadata, "canvas_windows", None)
        if windows is None or not windows.only:
            upstream.forward(self, layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
        for canvases in windows.groups if windows is not None else ():
            self.attend(layer, query, kv_cache, canvases, output)
        return output

    return forward


class CpuCanvasWindowImpl(CPUAttentionBackendImpl):
    """Upstream's on a CPU.

    Its kernel sees each row as a sequence of its own that ends with the canvas: its window, longer by
    the canvas, then begins where that of the canvas does.
    """

    forward = _forward(CPUAttentionBackendImpl)

    def attend(
        self,
        layer: Any,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        canvases: Canvases,
        output: torch.Tensor,
    ) -> None:
        """Writes the canvases' rows of ``output``."""
        rows, width = canvases.rows.flatten(), canvases.rows.shape[1]
        window = self.sliding_window - 1 + width
        blocks, heads, size, _ = kv_cache.shape
        key_cache, value_cache = kv_cache.view(blocks, heads, 2 * size, -1).chunk(2, dim=2)
        attended = query.new_empty(len(rows), *output.shape[1:])
        kind = (self.num_heads, self.num_kv_heads, self.head_size, window, layer.isa)
        if kind not in canvases.plans:
            canvases.plans[kind] = self._plan(layer, query, canvases, window)
        query_start_loc, seq_lens, table, plan = canvases.plans[kind]
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
            sliding_window=window,
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

    def _plan(self, layer: Any, query: torch.Tensor, canvases: Canvases, window: int) -> tuple[Any, ...]:
        count, width = canvases.rows.shape
        query_start_loc = torch.arange(count * width + 1, dtype=torch.int32)
        seq_lens = canvases.ends.repeat_interleave(width)
        table = canvases.block_table.repeat_interleave(width, dim=0)
        plan = ops.cpu_attn_get_scheduler_metadata(
            num_reqs=count * width,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_size,
            seq_lens=seq_lens,
            dtype=query.dtype,
            query_start_loc=query_start_loc,
            causal=True,
            sliding_window_size=window,
            isa=layer.isa,
            enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
            dynamic_causal=None,
            kv_cache_dtype=self.kv_cache_dtype,
        )
        return query_start_loc, seq_lens, table, plan


def _gathered(
    self: Any,
    layer: Any,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    canvases: Canvases,
    output: torch.Tensor,
) -> None:
    """Writes the canvases' rows, from a cache of plain keys and values side by side."""
    key_cache, value_cache = torch.split(kv_cache.transpose(1, 2), self.head_size, dim=-1)
    window = self.sliding_window[0] + 1
    output[canvases.rows] = canvas_attention(
        query[canvases.rows], key_cache, value_cache, canvases, window, self.scale
    )


class FlashCanvasWindowImpl(FlashAttentionImpl):
    """Upstream's FlashAttention; gathers the window of a canvas from the cache."""

    forward = _forward(FlashAttentionImpl)
    attend = _gathered


class TritonCanvasWindowImpl(TritonAttentionImpl):
    """Upstream's attention in Triton; gathers the window of a canvas from the cache."""

    forward = _forward(TritonAttentionImpl)
    attend = _gathered


def canvas_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    canvases: Canvases,
    window: int,
    scale: float,
) -> torch.Tensor:
    """Attention of whole canvases to themselves and to the ``window - 1`` positions before them.

    Args:
        query: ``[n, C, heads, D]``.
        key_cache: ``[pages, page size, KV heads, D]``; the canvases' keys are in it.
        value_cache: Likewise.
        canvases: n canvases of C positions.
        window: The layer's window.
        scale: Of the scores.

    Returns:
        ``[n, C, heads, D]``.
    """
    count, width, heads, size = query.shape
    page_size, kv_heads = key_cache.shape[1:3]
    length = window - 1 + width
    most = max(1, _MOST_BYTES // (2 * length * kv_heads * size * key_cache.element_size()))
    offset = torch.arange(length, device=query.device)
    attended = torch.empty_like(query)
    for first in range(0, count, most):
        part = slice(first, first + most)
        positions = canvases.ends[part, None].to(torch.int64) - length + offset
        seen = positions >= 0
        positions.clamp_(min=0)
        page = canvases.block_table[part].gather(1, positions // page_size).to(torch.int64)
        key, value = (
            cache[page, positions % page_size].transpose(1, 2) for cache in (key_cache, value_cache)
        )
        # The heads of a group are rows of one: no key is copied for each of them.
        rows = query[part].view(-1, width, kv_heads, heads // kv_heads, size).permute(0, 2, 3, 1, 4)
        mask = None if canvases.shortest >= length else seen[:, None, None]
        out = scaled_dot_product_attention(rows.flatten(2, 3), key, value, attn_mask=mask, scale=scale)
        out = out.view(len(out), kv_heads, -1, width, size).permute(0, 3, 1, 2, 4)
        attended[part] = out.reshape(-1, width, heads, size)
    return attended


_IMPLEMENTATIONS: dict[type[Any], type[Any]] = {
    CPUAttentionBackendImpl: CpuCanvasWindowImpl,
    FlashAttentionImpl: FlashCanvasWindowImpl,
    TritonAttentionImpl: TritonCanvasWindowImpl,
}


def use_canvas_windows(vllm_config: VllmConfig) -> tuple[frozenset[str], int]:
    """Prepares a model's sliding-window layers.

    Args:
        vllm_config: The engine's, its layers built.

    Returns:
        Their names and their window; no names and 0 where there are none.

    Raises:
        ValueError: A layer's attention backend or its cache is not supported.
    """
    layers = {
        name: layer
        for name, layer in get_layers_from_vllm_config(vllm_config, Attention).items()
        if layer.sliding_window is not None
    }
    for layer in layers.values():
        impl: Any = layer.impl
        if type(impl) in _IMPLEMENTATIONS.values():
            continue
        ours = _IMPLEMENTATIONS.get(type(impl))
        if ours is None:
            raise ValueError(
                f"attention_backend={layer.get_attn_backend().get_name()!r} is not supported with sliding "
                "windows of canvases; use FLASH_ATTN or TRITON_ATTN."
            )
        if not current_platform.is_cpu() and layer.kv_cache_dtype != "auto":
            raise ValueError(
                f"kv_cache_dtype={layer.kv_cache_dtype!r} is not supported with sliding windows of canvases; "
                "leave it at 'auto'."
            )
        retype(impl, ours)
    windows: set[int] = {
        layer.sliding_window for layer in layers.values() if layer.sliding_window is not None
    }
    if len(windows) > 1:
        raise ValueError(f"sliding windows of several lengths, {sorted(windows)}, are not supported.")
    return frozenset(layers), windows.pop() if windows else 0
