# SPDX-License-Identifier: Apache-2.0
"""FlashAttention 3 as upstream's wheel has it, for comparison; needs no installed vllm.

The library is ``vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so``, of the installed package or where
``FA3_LIBRARY`` says.
"""

import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor


def load() -> bool:
    """Loads the library; whether there is one."""
    path = os.environ.get("FA3_LIBRARY", "")
    if not path:
        spec = importlib.util.find_spec("vllm")
        folders = list(spec.submodule_search_locations or []) if spec else []
        path = next((f"{f}/vllm_flash_attn/_vllm_fa3_C.abi3.so" for f in folders), "")
    if not Path(path).is_file():
        return False
    torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    return True


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    longest_query: int,
    longest: int,
    scale: float,
    causal: bool,
    block_table: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of sequences lying one after the other; output and log-sum-exp, ``[H, T]``.

    Args:
        query: ``[T, H, D]``.
        key: ``[pages, page_size, K, D]`` with a ``block_table``, else ``[T, K, D]``.
        value: likewise.
        query_start_loc: ``[R + 1]`` int32.
        seq_lens: ``[R]`` int32; used with a ``block_table``.
        longest_query: most rows of a sequence.
        longest: most keys of a sequence.
        scale: factor of the scores.
        causal: aligned at the last row and key.
        block_table: ``[R, pages a sequence]`` int32.
        out: where to write, or None.
    """
    paged = block_table is not None
    result = torch.ops._vllm_fa3_C.fwd(
        query,
        key,
        value,
        None,
        None,
        None,
        out,
        query_start_loc,
        None if paged else query_start_loc,
        None,
        None,
        seq_lens if paged else None,
        longest_query,
        longest,
        block_table,
        *[None] * 8,
        scale,
        causal,
        -1,
        -1,
        0.0,
        True,
        None,
        0,
        None,
        0,
        None,
        1,
        0,
        None,
    )
    return result[0], result[1]
