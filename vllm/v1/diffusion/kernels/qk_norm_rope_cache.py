# SPDX-License-Identifier: Apache-2.0
"""Between a layer's first product and its attention: ``torch.ops.vllm_diffusion``."""

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels import library as _library  # noqa: F401  loads the compiled operators

__all__ = ["MAX_HEAD_SIZE", "qk_norm_rope_cache"]

MAX_HEAD_SIZE = 256
"""Largest head; every head is a multiple of 4."""


def qk_norm_rope_cache(
    qkv: Tensor,
    heads: int,
    kv_heads: int,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    epsilon: float,
    cos_sin: Tensor,
    positions: Tensor,
    key_cache: Tensor | None = None,
    value_cache: Tensor | None = None,
    slots: Tensor | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    query_scale: Tensor | None = None,
) -> Tensor | None:
    """Norms queries and keys, rotates them, and stores keys and values, in one kernel on a GPU.

    The root-mean-square norm is that of every head by itself; the rotation is of the neox style, of a
    head's first F elements: element ``i`` with element ``i + F / 2``. All is computed in float32 and
    rounded once. A cache of 8 bits gets what was rounded, divided by its scale and rounded again; what is
    too large becomes 448, the largest number, as upstream has it.
    ``q_weight``, ``k_weight``, ``cos_sin``, ``positions``, ``slots`` and scales are read before the kernels
    before this one have ended: none of them may write these.

    T rows, H heads, K KV heads, D the head size, F at most D and a multiple of 4.

    Args:
        qkv: ``[T, (H + 2 K) D]``, bfloat16 or float16, each row contiguous: queries, keys, values.
            Queries and keys are written.
        heads: H.
        kv_heads: K.
        q_weight: ``[D]`` of the same dtype: the norm's factors; None, for both, for no norm.
        k_weight: likewise.
        epsilon: added to the mean of the squares.
        cos_sin: ``[P, F]`` of the same dtype: of every position F / 2 cosines and F / 2 sines.
        positions: ``[T]`` int64. A row whose position is not in ``[0, P)`` is left alone.
        key_cache: ``[pages, page_size, K, D]`` of the same dtype, each head contiguous, written; None,
            for all three, to store nothing.
        value_cache: likewise.
        slots: ``[S]`` int64, S at most T: where a row goes, ``page * page_size + slot in the page``.
            Rows without a slot of the cache, and those behind S, are not stored.
        key_scale: one positive float32, of a cache of float8_e4m3fn, or of uint8 with the bytes of such
            numbers; None, for both, for a cache of the dtype.
        value_scale: likewise.
        query_scale: one positive float32, if queries are wanted in 8 bits too; with ``key_scale`` only.

    Returns:
        Queries divided by ``query_scale``, ``[T, H, D]`` float8_e4m3fn, if wanted. Rows that are left
        alone have no numbers.

    Raises:
        RuntimeError: for a wrong shape, dtype, device, stride or address, a head larger than
            ``MAX_HEAD_SIZE`` or no multiple of 4.
    """
    queries = None
    if query_scale is not None:
        size = qkv.shape[1] // (heads + 2 * kv_heads)
        queries = qkv.new_empty(len(qkv), heads, size, dtype=torch.float8_e4m3fn)
    torch.ops.vllm_diffusion.qk_norm_rope_cache(
        qkv,
        heads,
        kv_heads,
        q_weight,
        k_weight,
        epsilon,
        cos_sin,
        positions,
        key_cache,
        value_cache,
        slots,
        key_scale,
        value_scale,
        queries,
        query_scale,
    )
    return queries


@torch.library.register_fake("vllm_diffusion::qk_norm_rope_cache")  # type: ignore[untyped-decorator]
def _qk_norm_rope_cache_fake(
    qkv: Tensor,
    heads: int,
    kv_heads: int,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    epsilon: float,
    cos_sin: Tensor,
    positions: Tensor,
    key_cache: Tensor | None,
    value_cache: Tensor | None,
    slots: Tensor | None,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    queries: Tensor | None,
    query_scale: Tensor | None,
) -> None:
    return None
