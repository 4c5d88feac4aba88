# SPDX-License-Identifier: Apache-2.0
"""Which CUDA graphs a diffusion engine captures, where its user has not said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.config.compilation import CompilationMode, CUDAGraphMode
from vllm.logger import init_logger
from vllm.platforms import current_platform

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(__name__)

_LARGEST = 8192
"""Rows of the largest graph. With more, a step keeps the device busy for longer than launching it takes,
also where few experts of a mixture are active: on an H200 a step of LLaDA2.0-mini with 64 requests of 32
rows took 49 ms without a graph and 19 ms with one, and 128 requests in a graph took 37 ms."""

_LARGEST_OF_SHORT_BLOCKS = 2048
"""The same where blocks are short. A step in a graph sees a prompt as one sequence per block, which for
short blocks costs up to four times the attention of ``block_causal_attention``; long chunks of prompts stay
out of graphs, therefore."""

_SHORT_BLOCK = 32
"""A block that is shorter leaves most of a tile of attention empty (``prefill_attention``)."""

_SHORT = 1024
"""Contexts up to which FlashAttention 3 is not to split a sequence's keys over the device: joining
the parts is one more kernel per layer."""

_WEIGHT_BOUND = 256
"""Rows up to which a step takes as long as reading the weights does: padding is free there."""


def configure_graphs(vllm_config: VllmConfig, block_length: int, open_blocks: int = 1) -> None:
    """Chooses whole-step graphs by the number of rows, for any mixture of windows.

    A window of one block, one of two (a commit with the next block's first step) and a
    prompt's chunk may be in one batch: upstream's graphs for uniform batches would serve the
    first alone. Where the attention backend cannot be captured for mixed batches, upstream
    narrows the mode itself. The models are not compiled unless that is asked for: a graph
    makes launches cheap, the kernels that compilation would fuse are fused in the models, and
    the engine starts in a fraction of the time.

    Args:
        vllm_config: The configuration; what its user has set is kept.
        block_length: Tokens per block as served.
        open_blocks: Most open blocks of a request.
    """
    if not current_platform.is_cuda_alike():
        return
    compilation = vllm_config.compilation_config
    if compilation.mode is None:
        compilation.mode = CompilationMode.NONE
    if compilation.cudagraph_mode is None:
        compilation.cudagraph_mode = CUDAGraphMode.FULL
    if compilation.cudagraph_capture_sizes is None and compilation.max_cudagraph_capture_size is None:
        scheduler = vllm_config.scheduler_config
        requests, most = scheduler.max_num_seqs, scheduler.max_num_batched_tokens
        largest = largest_graph(block_length, requests, most, open_blocks)
        sizes = capture_sizes(block_length, largest)
        compilation.cudagraph_capture_sizes = sizes
        # Upstream measures their memory before it sizes the cache, and says what the capture took.
        logger.info("%d CUDA graphs, of steps of %d to %d rows.", len(sizes), sizes[0], sizes[-1])
    attention = vllm_config.attention_config
    unsaid = type(attention)().flash_attn_max_num_splits_for_cuda_graph
    if (
        vllm_config.model_config.max_model_len <= _SHORT
        and attention.flash_attn_max_num_splits_for_cuda_graph == unsaid
    ):
        attention.flash_attn_max_num_splits_for_cuda_graph = 1


def refuse_graphs(vllm_config: VllmConfig, kind: str) -> None:
    """Switches CUDA graphs off, for a mode whose steps no graph can replay.

    Raises:
        ValueError: The user has asked for graphs.
    """
    if not current_platform.is_cuda_alike():
        return
    compilation = vllm_config.compilation_config
    if compilation.cudagraph_mode not in (None, CUDAGraphMode.NONE):
        raise ValueError(
            f"cudagraph_mode={compilation.cudagraph_mode.name!r} is not supported with {kind}; leave it "
            "unset or 'NONE'."
        )
    compilation.cudagraph_mode = CUDAGraphMode.NONE


def largest_graph(
    block_length: int, max_num_seqs: int, max_num_batched_tokens: int, open_blocks: int = 1
) -> int:
    """Rows of the largest graph: those of a full batch, unless a step of so many gains nothing by it.

    Args:
        block_length: Tokens per block.
        max_num_seqs: Requests of a full batch. Each has a block, and another one to commit: where all
            began together, with a fixed schedule, all commit in the same step.
        max_num_batched_tokens: Rows that a step may have.
        open_blocks: Most open blocks of a request, each of which may be another one to commit.
    """
    most = _LARGEST if block_length >= _SHORT_BLOCK else _LARGEST_OF_SHORT_BLOCKS
    return min(2 * open_blocks * block_length * max_num_seqs, most, max_num_batched_tokens)


def capture_sizes(block_length: int, largest: int) -> list[int]:
    """Numbers of rows to capture: multiples of the block, further apart as they grow.

    Four from one power of two to the next while padding is free, eight beyond, and the largest. A long
    block counts as one of 256: what fits into a block need not fill it.

    Args:
        block_length: Tokens per block.
        largest: Rows of the largest graph; a block of up to 256, if that is more.

    Returns:
        The numbers, ascending.
    """
    block_length = min(block_length, _WEIGHT_BOUND)
    sizes = [block_length]
    while True:
        rows = sizes[-1]
        power = 1 << (rows.bit_length() - 1)
        gap = power // (4 if rows < _WEIGHT_BOUND else 8)
        following = -(-(rows + max(gap, 1)) // block_length) * block_length
        if following > largest:
            last = largest // block_length * block_length
            return sizes if last <= rows else [*sizes, last]
        sizes.append(following)
