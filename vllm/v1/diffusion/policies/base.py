# SPDX-License-Identifier: Apache-2.0
"""The interface of an unmasking policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from vllm.v1.diffusion.rules import Rule


@dataclass(frozen=True)
class PositionStats:
    """What the model says about every canvas position, ``[requests, width]``.

    Rows of positions that are not masked, or beyond a request's block, hold
    unspecified values.

    Attributes:
        token: The token that would be written, int64.
        confidence: Its probability, float32.
        entropy: Entropy of the position's distribution in nats, float32.
        top1: Highest probability, float32.
        top2: Second highest probability, float32.
    """

    token: torch.Tensor
    confidence: torch.Tensor
    entropy: torch.Tensor
    top1: torch.Tensor
    top2: torch.Tensor


@dataclass(frozen=True)
class CanvasView:
    """The requests' canvases at the start of a step.

    Attributes:
        tokens: Canvas token ids, int64 ``[requests, width]``.
        masked: Whether a position is still masked, bool ``[requests, width]``.
        step: Denoising steps already made on the block, int32 ``[requests]``.
        steps: Denoising steps asked for, int32 ``[requests]``.
        block_length: Tokens a block, int32 ``[requests]``.
        threshold: The policy's threshold, float32 ``[requests]``.
        seed: The requests' seeds, int64 ``[requests]``.
        position: Positions of the tokens, int64 ``[requests, width]``.
        values: The numbers that the policy's ``defaults`` name, each float32 ``[requests]``.
    """

    tokens: torch.Tensor
    masked: torch.Tensor
    step: torch.Tensor
    steps: torch.Tensor
    block_length: torch.Tensor
    threshold: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor
    values: Mapping[str, torch.Tensor] = field(default_factory=dict)


class UnmaskingPolicy:
    """Chooses which masked positions of a block are settled in a step.

    A policy is stateless and made once a process. It either names a built-in
    ``rule``, which the fused ``unmask`` kernel carries out, or implements
    :meth:`select`.
    """

    rule: ClassVar[Rule] = Rule.GIVEN
    """The kernel's rule; ``GIVEN`` where :meth:`select` decides."""

    parameters: ClassVar[frozenset[str]] = frozenset()
    """The fields of ``DiffusionParams`` that have an effect with this policy."""

    defaults: ClassVar[Mapping[str, float]] = {}
    """Numbers that a request may set beside ``steps`` and the threshold, and their defaults:
    ``CanvasView.values``."""

    threshold_parameter: ClassVar[str] = "threshold"
    """The field that is handed to the policy as its threshold."""

    default_steps: ClassVar[int | None] = None
    """Steps a block where none are asked for; None: as many as the block has tokens."""

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        """Chooses positions to settle, for a batch of requests.

        Runs on the device and must not synchronise with the host. Positions
        that are not masked are ignored. Where a request has nothing chosen for
        ``steps + width`` steps, it would never end: choose at least one.

        Returns:
            bool ``[requests, width]``.
        """
        raise NotImplementedError(f"{type(self).__name__} names a rule")

    def steps_left(self, masked: int, step: int, steps: int, block_length: int) -> int | None:
        """How many denoising steps a block still needs.

        Args:
            masked: Masked positions left.
            step: Steps already made on the block.
            steps: Steps asked for a block.
            block_length: Tokens a block.

        Returns:
            The exact number where it does not depend on the model's output,
            so that the scheduler can plan ahead of it; else None.
        """
        return None


def scheduled_count(step: int, steps: int, block_length: int) -> int:
    """Positions that a fixed schedule settles in a step, at least 1.

    ``block_length // steps``, and one more in the first
    ``block_length % steps`` steps (SDAR's ``get_num_transfer_tokens``).
    """
    return max(1, block_length // steps + (step < block_length % steps))


class ScheduledPolicy(UnmaskingPolicy):
    """A policy that settles a fixed number of positions a step."""

    parameters = frozenset({"steps"})

    def steps_left(self, masked: int, step: int, steps: int, block_length: int) -> int | None:
        """See :meth:`UnmaskingPolicy.steps_left`."""
        count = 0
        while masked > 0:
            masked -= scheduled_count(step + count, steps, block_length)
            count += 1
        return count
