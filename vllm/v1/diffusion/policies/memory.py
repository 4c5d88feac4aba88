# SPDX-License-Identifier: Apache-2.0
"""How much device memory unmasking policies may take."""

from __future__ import annotations

from functools import cache

import torch

from vllm.v1.diffusion.policies.base import UnmaskingPolicy
from vllm.v1.diffusion.policies.registry import get_policy

MOST_MEMORY = 1 << 28
"""Bytes that all policies of a worker may remember together; kept free when the KV cache is sized."""

MOST_TEMPORARY = 1 << 27
"""Bytes for what a policy computes in a step; kept free likewise."""


def size_of(memory: dict[str, torch.Tensor]) -> int:
    """Bytes of what a policy made to remember with."""
    return sum(tensor.numel() * tensor.element_size() for tensor in memory.values())


@cache
def memory_needed(algorithm: str, requests: int, width: int) -> int:
    """Bytes that a built-in policy remembers; 0 for others, which the worker asks when they are used.

    Args:
        algorithm: The policy's name.
        requests: Requests that may run at a time.
        width: Positions of a canvas.
    """
    policy = get_policy(algorithm)
    if (
        not type(policy).__module__.startswith("vllm.")
        or type(policy).make_memory is UnmaskingPolicy.make_memory
    ):
        return 0
    return size_of(policy.make_memory(requests, width, torch.device("meta")))


def check_memory(algorithm: str, requests: int, width: int) -> None:
    """Refuses a policy that would have to remember more than there is room for.

    Args:
        algorithm: The policy's name.
        requests: ``max_num_seqs``.
        width: The served block length.

    Raises:
        ValueError: Says how much, and what to serve for less.
    """
    needed = memory_needed(algorithm, requests, width)
    if needed > MOST_MEMORY:
        raise ValueError(
            f"diffusion_algorithm={algorithm!r} would remember {needed} bytes with block_length={width} and "
            f"max_num_seqs={requests}, and {MOST_MEMORY} are kept for policies: it needs an engine with "
            "shorter blocks or fewer requests at a time."
        )
