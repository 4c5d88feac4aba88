# SPDX-License-Identifier: Apache-2.0
"""Counts what a device would be asked to run: a number of launches, whatever the machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vllm.v1.diffusion.policies import CanvasView, PositionStats, UnmaskingPolicy
from vllm.v1.diffusion.policies.base import Proposals
from vllm.v1.diffusion.policies.parts.multi_block import MOST_OPEN_BLOCKS

SELECT = {
    "confidence_threshold": 21,
    "d3llm": 57,
    "edit": 20,
    "entropy": 14,
    "entropy_distance": 15,
    "hierarchical": 18,
    "least_entropy": 15,
    "local_leap": 28,
    "low_confidence_linear": 46,
    "low_confidence_spread": 15,
    "maskgit_plus": 13,
    "multi_block": 37,
    "origin": 7,
    "p2": 18,
    "random": 12,
    "self_speculation": 26,
    "self_speculation_edit": 26,
    "sub_blocks": 15,
    "topk_margin": 14,
    "widest_margin": 15,
}
"""Most launches of ``select``, for any number of requests."""

BOOST = {"credit": 19}

REDRAW = {"daedal": 126, "insert_delete": 156}

_ALLOCATE = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided")


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts dispatched operators that compute something: neither views nor allocations.

    Attributes:
        counts: How often each was called.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Notes one call, and makes it."""
        name = func._schema.name
        if not func.is_view and name not in _ALLOCATE:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All of them."""
        return self.counts.total()


def launches(call: Callable[[], object]) -> Launches:
    """What a call launches."""
    with Launches() as counted:
        call()
    return counted  # type: ignore[no-any-return]


def kernels(call: Callable[[], object]) -> Counter[str]:
    """The kernels, by name, that a call runs on a GPU; copies and memsets are left out."""
    call()  # What is made once is made.
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    on_device = (e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA)  # type: ignore[attr-defined]
    return Counter(e.name for e in on_device if not e.name.startswith(("Memcpy", "Memset")))


def question(policy: UnmaskingPolicy) -> Callable[..., object]:
    """The method by which a policy answers in a step."""
    if policy.redraws:
        return policy.redraw
    return policy.boost if policy.boosts else policy.select


def proposals(tokens: torch.Tensor, confidence: torch.Tensor) -> Proposals:
    """Proposals for a canvas of which every position is masked; the other tokens cost nothing."""
    best = torch.full_like(tokens, 3)
    return Proposals(best, confidence, best, 39, (4, 5), lambda columns, _: columns)


def canvas(
    policy: UnmaskingPolicy, requests: int, width: int, device: torch.device, **values: float
) -> tuple[PositionStats, CanvasView]:
    """What a policy is asked in a step; ``values`` change the defaults of its numbers."""
    generator = torch.Generator().manual_seed(requests * width)
    confidence = torch.rand(requests, width, generator=generator).to(device)
    tokens = torch.zeros(requests, width, dtype=torch.int64, device=device)

    def each(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((requests,), value, dtype=dtype, device=device)

    # A default of 0 is one: it asks for nothing.
    given = {name: 0.9 if one.default is None else one.default for name, one in policy.numbers.items()}
    asked = {name: [float(value)] * requests for name, value in (given | values).items() if name in given}
    stats = PositionStats(tokens, confidence, -confidence.log(), confidence, confidence / 2)
    return stats, CanvasView(
        tokens=tokens,
        masked=torch.ones(requests, width, dtype=torch.bool, device=device),
        step=each(1, torch.int32),
        steps=each(8, torch.int32),
        block_length=each(width, torch.int32),
        unmasked=torch.zeros(requests, width, dtype=torch.bool, device=device),
        seed=each(7, torch.int64),
        position=torch.arange(width, device=device).expand(requests, -1),
        values={name: each(value[0], torch.float32) for name, value in asked.items()},
        host_values=asked,
        memory=policy.make_memory(requests, width, device),
        proposals=proposals(tokens, confidence) if policy.redraws else None,
        room=each(width, torch.int64) if policy.elastic else None,
        round_=each(0, torch.int32),
        accepted=torch.zeros(requests, width, dtype=torch.bool, device=device),
        waits=each(False, torch.bool),
        part_length=each(max(width // MOST_OPEN_BLOCKS, 1), torch.int32),
    )
