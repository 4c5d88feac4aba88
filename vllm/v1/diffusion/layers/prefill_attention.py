# SPDX-License-Identifier: Apache-2.0
"""FlashAttention's layers, with a kernel of ours where prompts are cut into short blocks.

FlashAttention sees a window as one bidirectional sequence a block. A block shorter than its tile of
queries leaves most of the tile empty, and every block reads its keys again: in a prompt of 4096 tokens
with blocks of 4 that takes four times as long as ``block_causal_attention`` (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.flash_attn import FlashAttentionImpl
from vllm.v1.diffusion.kernels.block_causal import block_causal_attention
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.utils import AttentionGroup

_HEAD_SIZES = (64, 80, 96, 128)
_TILE = 128
"""Rows of FlashAttention's tile of queries; the heads of a group are rows of one."""


@dataclass(frozen=True)
class BlockWindows:
    """The windows of a step's R requests, as ``block_causal_attention`` wants them.

    Attributes:
        block_table: int32 ``[R, pages a request]``.
        query_start_loc: int32 ``[R + 1]``.
        seq_lens: int32 ``[R]``.
        block_length: int32 ``[R]``.
    """

    block_table: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_length: torch.Tensor


@dataclass(frozen=True)
class StepAttention:
    """What upstream built for a step's attention, before the forward reads it.

    Attributes:
        metadata: By layer; a mode may add to it.
        groups: The layers of each block table, in groups.
        block_tables: One row per request each.
    """

    metadata: dict[str, Any]
    groups: list[list[AttentionGroup]]
    block_tables: tuple[torch.Tensor, ...]

    def tables(self) -> Iterator[tuple[torch.Tensor, list[str]]]:
        """Each block table with the names of the layers that read it."""
        for table, groups in zip(self.block_tables, self.groups, strict=True):
            yield table, [name for group in groups for name in group.layer_names]


class BlockCausalAttentionImpl(FlashAttentionImpl):
    """Upstream's implementation, but for steps whose metadata has ``block_windows``."""

    def forward(
        self,
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
        windows: BlockWindows | None = getattr(attn_metadata, "block_windows", None)
        if windows is None:
            upstream: torch.Tensor = super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs
            )
            return upstream
        used = attn_metadata.num_actual_tokens
        key_cache, value_cache = torch.split(kv_cache.transpose(1, 2), self.head_size, dim=-1)
        block_causal_attention(
            query[:used],
            key_cache,
            value_cache,
            windows.block_table,
            windows.query_start_loc,
            windows.seq_lens,
            windows.block_length,
            self.scale,
            output[:used],
        )
        return output


class PrefillAttention:
    """Which steps of a model go to our kernel."""

    def __init__(self, impls: Sequence[Any], device: torch.device) -> None:
        """Notes for which blocks the kernel gains.

        Args:
            impls: The layers' implementations, each a ``BlockCausalAttentionImpl``; none: no step goes.
            device: Where the model runs.
        """
        self._device = device
        self._longest = min(((_TILE - 1) // impl.num_queries_per_kv for impl in impls), default=0)

    def wants(self, block_lengths: np.ndarray) -> bool:
        """Whether a step with such blocks gains by it.

        Args:
            block_lengths: Of the step's requests, ``[R]``.
        """
        return int(block_lengths.min()) <= self._longest

    def attach(
        self,
        attention: StepAttention,
        input_batch: InputBatch,
        block_lengths: np.ndarray,
        ends: np.ndarray | None = None,
    ) -> None:
        """Puts the step's windows beside what upstream's builders made of its blocks.

        Args:
            attention: The step's, whose metadata is changed.
            input_batch: The step's R requests.
            block_lengths: Tokens per block of each, ``[R]``, on the host.
            ends: Keys that the last row of each sees, likewise; None where its window ends with them.
        """
        requests = input_batch.num_reqs
        if ends is None:
            ends = input_batch.num_computed_tokens_np + input_batch.num_scheduled_tokens
        staged = np.concatenate((ends, block_lengths)).astype(np.int32)
        seq_lens, block_length = torch.split(async_tensor_h2d(staged, device=self._device), requests)
        for table, layers in attention.tables():
            windows = BlockWindows(
                block_table=table[:requests],
                query_start_loc=input_batch.query_start_loc[: requests + 1],
                seq_lens=seq_lens,
                block_length=block_length,
            )
            for name in layers:
                attention.metadata[name].block_windows = windows


def computes(impl: Any, dtype: object) -> bool:
    """Whether the kernel computes what a layer's implementation does.

    Args:
        impl: Of upstream's attention.
        dtype: The model's.
    """
    return bool(
        type(impl) is FlashAttentionImpl
        and dtype in (torch.bfloat16, torch.float16)
        and impl.head_size in _HEAD_SIZES
        and impl.attn_type == AttentionType.DECODER
        and impl.kv_cache_dtype in ("auto", str(dtype).removeprefix("torch."))
        and impl.sliding_window == (-1, -1)
        and impl.alibi_slopes is None
        and impl.sinks is None
        and not impl.logits_soft_cap
        and impl.dcp_world_size == 1
    )
