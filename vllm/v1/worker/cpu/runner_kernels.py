# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Diffusion project
"""Model Runner V2 on a CPU without Triton: C++ in the place of its Triton kernels.

:func:`register` hands upstream's ``register_kernels`` one operator of ``torch.ops.vllm_diffusion`` a
kernel. An operator takes the arguments of the kernel it stands for, by name and order, so nothing
stands between the launch and it; block sizes, strides and warps are ignored, the grid is read off the
tensors. The sources are ``csrc/cpu/runner_kernels_*.cpp``.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vllm.triton_utils import HAS_TRITON
from vllm.triton_utils.dispatcher import register_kernels
from vllm.v1.diffusion.kernels import library as _ops  # noqa: F401  loads the operators

__all__ = ["KERNELS", "register"]

# Module under vllm.v1.worker.gpu -> {kernel: operator of torch.ops.vllm_diffusion}. The one kernel
# with two signatures has a function of ours.
_OPERATORS: dict[str, dict[str, str]] = {
    "block_table": {
        "_gather_block_tables_kernel": "runner_gather_block_tables",
        "_compute_slot_mappings_kernel": "runner_compute_slot_mappings",
    },
    "input_batch": {
        "_prepare_prefill_inputs_kernel": "runner_prepare_prefill_inputs",
        "_prepare_pos_seq_lens_kernel": "runner_prepare_pos_seq_lens",
        "_combine_sampled_and_draft_tokens_kernel": "runner_combine_sampled_and_draft_tokens",
        "_expand_idx_mapping_kernel": "runner_expand_idx_mapping",
        "_get_num_sampled_and_rejected_kernel": "runner_get_num_sampled_and_rejected",
        "_post_update_kernel": "runner_post_update",
        "_post_update_num_computed_tokens_kernel": "runner_post_update_num_computed_tokens",
    },
    "metrics.logits": {"_num_nans_kernel": "runner_num_nans"},
    "mm.rope": {"_prepare_rope_positions_kernel": "runner_prepare_rope_positions"},
    "model_states.prompt_embeds": {"_apply_prompt_embeds_kernel": "runner_apply_prompt_embeds"},
    "sample.bad_words": {"_bad_words_kernel": "runner_bad_words"},
    "sample.gumbel": {
        "_temperature_kernel": "runner_temperature",
        "_gumbel_sample_kernel": "runner_gumbel_sample",
    },
    "sample.logit_bias": {"_bias_kernel": "runner_bias"},
    "sample.logprob": {
        "_topk_log_softmax_kernel": "runner_topk_log_softmax",
        "_ranks_kernel": "runner_ranks",
        "_fill_logprob_token_ids_kernel": "runner_fill_logprob_token_ids",
    },
    "sample.min_p": {"_min_p_kernel": "runner_min_p"},
    "sample.output": {"_compact_sampling_mask_kernel": "runner_compact_sampling_mask"},
    "sample.penalties": {
        "_penalties_kernel": "runner_penalties",
        "_bincount_kernel": "runner_bincount",
    },
    "sample.prompt_logprob": {
        "_prompt_logprobs_token_ids_kernel": "runner_prompt_logprobs_token_ids",
    },
    "sample.thinking_budget": {
        "_update_committed_marker_cache_kernel": "runner_update_committed_marker_cache",
        "_thinking_budget_kernel": "runner_thinking_budget",
    },
    "sample.trace_replay": {"_trace_replay_kernel": "runner_trace_replay"},
    "structured_outputs": {"_apply_grammar_bitmask_kernel": "runner_apply_grammar_bitmask"},
}


def _apply_write(
    output_ptr: Tensor,
    output_stride: Any,
    write_indices_ptr: Tensor,
    write_starts_ptr: Tensor,
    write_contents_ptr: Tensor,
    write_cu_lens_ptr: Tensor,
    write_group_ids_ptr: Tensor | None,
    BLOCK_SIZE: int,
    MULTI_GROUP: bool,
) -> None:
    """Writes staged pieces: into one matrix, or into several int32 ones given by address.

    Args:
        output_ptr: the matrix (int32, int64, float32), or ``[groups]`` uint64 addresses.
        output_stride: its row stride in elements, or ``[groups]`` int64 strides.
        write_indices_ptr: ``[writes]``, the row of each.
        write_starts_ptr: ``[writes]``, the column of each.
        write_contents_ptr: the pieces, one after the other.
        write_cu_lens_ptr: ``[writes]``, where each piece ends.
        write_group_ids_ptr: ``[writes]``, the matrix of each, if there are several.
        BLOCK_SIZE: Triton's, ignored.
        MULTI_GROUP: whether there are several.
    """
    operators = torch.ops.vllm_diffusion
    what = (write_indices_ptr, write_starts_ptr, write_contents_ptr, write_cu_lens_ptr)
    if MULTI_GROUP:
        operators.runner_apply_grouped_write(output_ptr, output_stride, *what, write_group_ids_ptr)
    else:
        operators.runner_apply_write(output_ptr, output_stride, *what)


def _kernels() -> dict[str, Callable[..., Any]]:
    operators = torch.ops.vllm_diffusion
    kernels: dict[str, Callable[..., Any]] = {
        f"vllm.v1.worker.gpu.{module}.{kernel}": getattr(operators, name).default
        for module, names in _OPERATORS.items()
        for kernel, name in names.items()
    }
    kernels["vllm.v1.worker.gpu.buffer_utils._apply_write_kernel"] = _apply_write
    return kernels


KERNELS = _kernels()
"""Full name of each replaced kernel -> what runs instead."""


def parameters(implementation: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the arguments that an implementation takes, in order."""
    if isinstance(implementation, torch._ops.OpOverload):
        return tuple(argument.name for argument in implementation._schema.arguments)
    return tuple(inspect.signature(implementation).parameters)


def _check_signature(name: str, implementation: Callable[..., Any]) -> None:
    """Raises RuntimeError if upstream's kernel takes other arguments than ours."""
    module, kernel = name.rsplit(".", 1)
    function = getattr(importlib.import_module(module), kernel)
    theirs = tuple(inspect.signature(function).parameters)
    ours = parameters(implementation)
    launch_options = ("num_warps",)  # Triton's own, not among a kernel's parameters
    if theirs != tuple(argument for argument in ours if argument not in launch_options):
        raise RuntimeError(
            f"{name} of this vLLM takes {theirs}, but its CPU version takes {ours}: the two come from "
            "different releases."
        )


@functools.cache
def register() -> None:
    """Replaces the Triton kernels of Model Runner V2 in this process, if Triton cannot run.

    Does nothing where Triton works (upstream's triton-cpu). To be called in a worker, before the
    model runner is made.

    Raises:
        RuntimeError: if a kernel's arguments are not those this version was written for.
    """
    if HAS_TRITON:
        return
    # Importing a kernel imports its module, and modules of the GPU runner copy names that this one
    # replaces: it must come first.
    importlib.import_module("vllm.v1.worker.cpu.shm")
    for name, implementation in KERNELS.items():
        _check_signature(name, implementation)
    register_kernels(KERNELS)
