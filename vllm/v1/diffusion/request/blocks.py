# SPDX-License-Identifier: Apache-2.0
"""How one request is denoised and where its blocks lie: the same in scheduler and worker."""

from __future__ import annotations

from vllm.v1.diffusion.modes.grid import BlockGrid, BlockRule
from vllm.v1.diffusion.request.decoding import Decoding


def copy_begin(end: int, kv_block: int) -> int:
    """Where the copy of a guided request's canvas begins: with a KV block, so that its cache is its own.

    Args:
        end: Where the canvas ends.
        kv_block: Tokens of a KV block.
    """
    return -(-end // kv_block) * kv_block


def more_parts(decoding: Decoding, grid: BlockGrid) -> int:
    """Sequences beside one of the window of an answer whose length the worker decides.

    Args:
        decoding: How the request is denoised.
        grid: Where its blocks lie.
    """
    shortest = min(grid.origin + int(decoding.values["initial_length"]), grid.limit)
    return (grid.limit - 1) // shortest


def placed(
    decoding: Decoding, rule: BlockRule, prompt_len: int, max_tokens: int, max_model_len: int
) -> tuple[Decoding, BlockGrid]:
    """Places a request's blocks.

    Args:
        decoding: How the request is denoised.
        rule: The mode's.
        prompt_len: Tokens of the prompt.
        max_tokens: Most tokens of the answer.
        max_model_len: Tokens of the context.

    Returns:
        The decoding, for shorter blocks where the whole answer is shorter than one, and the blocks.
    """
    if decoding.template is not None:
        # A template that is read in part is denoised as a whole.
        max_tokens = max(max_tokens, len(decoding.template))
    elif rule.whole:
        max_tokens = max_model_len
    limit = min(prompt_len + max_tokens, max_model_len)
    if rule.cut and rule.from_prompt:
        decoding = decoding.within(limit - prompt_len)
    return decoding, rule.grid(
        decoding.block_length, prompt_len, limit, decoding.canvas, decoding.open_blocks
    )
