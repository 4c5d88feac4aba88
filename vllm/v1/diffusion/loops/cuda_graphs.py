# SPDX-License-Identifier: Apache-2.0
"""Which CUDA graphs a diffusion engine captures, where its user has not said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.config.compilation import CompilationMode, CUDAGraphMode
from vllm.platforms import current_platform

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_LARGEST = 1024
"""Rows of the largest graph. A step with more keeps the device busy for longer than
launching it takes."""

_SHORT = 1024
"""Contexts up to which FlashAttention 3 is not to split a sequence's keys over the device: joining
the parts is one more kernel per layer."""

_WEIGHT_BOUND = 256
"""Rows up to which a step takes as long as reading the weights does: padding is free there."""


def configure_graphs(vllm_config: VllmConfig, block_length: int) -> None:
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
        largest = min(_LARGEST, scheduler.max_num_batched_tokens)
        compilation.cudagraph_capture_sizes = capture_sizes(block_length, largest)
    attention = vllm_config.attention_config
    unsaid = type(attention)().flash_attn_max_num_splits_for_cuda_graph
    if (
        vllm_config.model_config.max_model_len <= _SHORT
        and attention.flash_attn_max_num_splits_for_cuda_graph == unsaid
    ):
        attention.flash_attn_max_num_splits_for_cuda_graph = 1


def capture_sizes(block_length: int, largest: int) -> list[int]:
    """Numbers of rows to capture: multiples of the block, further apart as they grow.

    Four from one power of two to the next while padding is free, eight beyond. A long block
    counts as one of 256: what fits into a block need not fill it.

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
            return sizes
        sizes.append(following)
