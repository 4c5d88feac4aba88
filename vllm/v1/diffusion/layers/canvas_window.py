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
        window = self.sliding_window - 1 + canvases.rows.shape[1]
        kind = (self.num_heads, self.num_kv_heads, self.head_size, window, layer.isa)
        if kind not in canvases.plans:
            canvases.plans[kind] = self._plan(layer, query.dtype, canvases, window)
        rows = canvases.rows.flatten()
        cpu_attend(self, layer, query, kv_cache, rows, output, canvases.plans[kind])

    def _plan(self, layer: Any, dtype: torch.dtype, canvases: Canvases, window: int) -> CpuSequences:
        width = canvases.rows.shape[1]
        seq_lens = canvases.ends.repeat_interleave(width)
        table = canvases.block_table.repeat_interleave(width, dim=0)
        return cpu_sequences(self, layer, dtype, seq_lens, table, window)


def _gathered(
    self: Any,
    layer: Any,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    canvases: Canvases,
    output: torch.Tensor,
) -> None:
    """Writes the canvases' rows, from a cache of plain keys and values side by side."""
    window = self.sliding_window[0] + 1
    output[canvases.rows] = canvas_attention(
        query[canvases.rows], *plain_cache(kv_cache, self.head_size), canvases, window, self.scale
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
    count, page_size = len(query), key_cache.shape[1]
    length = window - 1 + query.shape[1]
    most = at_a_time(length, key_cache)
    offset = torch.arange(length, device=query.device)
    attended = torch.empty_like(query)
    for first in range(0, count, most):
        part = slice(first, first + most)
        positions = canvases.ends[part, None].to(torch.int64) - length + offset
        seen = positions >= 0
        positions.clamp_(min=0)
        page = canvases.block_table[part].gather(1, positions // page_size).to(torch.int64)
        key, value = (cache[page, positions % page_size] for cache in (key_cache, value_cache))
        sees = None if canvases.shortest >= length else seen[:, None]
        attended[part] = grouped_attention(query[part], key, value, sees, scale)
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
    use_implementations(layers.values(), _IMPLEMENTATIONS, "sliding windows of canvases")
    windows: set[int] = {
        layer.sliding_window for layer in layers.values() if layer.sliding_window is not None
    }
    if len(windows) > 1:
        raise ValueError(f"sliding windows of several lengths, {sorted(windows)}, are not supported.")
    return frozenset(layers), windows.pop() if windows else 0
