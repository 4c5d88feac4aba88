# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Diffusion project
"""Block-causal attention over a paged KV cache: ``torch.ops.vllm_diffusion``.

Requests lie one after the other in ``query``, as in upstream's attention backends. Row ``i`` of a
request's ``n`` rows has position ``p = seq_len - n + i`` and sees the keys ``[0, e)``, where ``e`` is
the end of its own block, ``(p // B + 1) * B``, or ``seq_len`` if that comes first. A block length of 1
is causal attention, one of ``seq_len`` or more is bidirectional.
"""

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels import library as _library  # noqa: F401  loads the compiled operators

__all__ = ["block_causal_attention"]


def block_causal_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_length: Tensor,
    scale: float,
    out: Tensor,
) -> None:
    """Attention of every row to the keys up to the end of its block, written to ``out``.

    Nothing on the host depends on lengths: a captured CUDA graph serves any batch of R requests whose
    rows fit in ``query``. Rows from ``query_start_loc[-1]`` on are left alone. On Hopper a kernel of its
    own serves heads of 64 and 128 where a request has 64 rows and heads of a group, or more, on average;
    the kernels round differently.

    T tokens, R requests, H heads, K KV heads (H a multiple of K), D the head size.

    Args:
        query: ``[T, H, D]``, bfloat16 or float16, on the CPU also float32. Each head is contiguous
            and, on CUDA, begins at a multiple of 16 bytes; likewise for the caches and ``out``.
        key_cache: ``[pages, page_size, K, D]``, any strides: a view of upstream's cache, for instance
            ``kv_cache.transpose(1, 2)[..., :D]`` of its FlashAttention backend.
        value_cache: likewise, ``kv_cache.transpose(1, 2)[..., D:]``.
        block_table: ``[R, pages a request]`` int32.
        query_start_loc: ``[R + 1]`` int32, first row of each request, ascending.
        seq_lens: ``[R]`` int32: keys of each request in the cache, its own rows included.
        block_length: ``[R]`` int32, at least 1 (B); any, also no power of two.
        scale: factor of the scores before the softmax.
        out: ``[T, H, D]`` of ``query``'s dtype, written. A row without a key becomes 0.

    Raises:
        RuntimeError: for a wrong shape, dtype, device or stride, or a head size other than 64, 80, 96
            and 128 on CUDA. On the CPU also for lengths or pages out of range. On CUDA, where looking
            would mean waiting for the device, a page out of range reads as zeros, a request whose
            rows are out of range is left alone and a block length below 1 counts as 1.
    """
    torch.ops.vllm_diffusion.block_causal_attention(
        query, key_cache, value_cache, block_table, query_start_loc, seq_lens, block_length, scale, out
    )


@torch.library.register_fake("vllm_diffusion::block_causal_attention")  # type: ignore[untyped-decorator]
def _block_causal_attention_fake(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_length: Tensor,
    scale: float,
    out: Tensor,
) -> None:
    return None
