# SPDX-License-Identifier: Apache-2.0
"""The interface of an unmasking policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from vllm.v1.diffusion.kernels.rules import Rule


@dataclass(frozen=True)
class PositionStats:
    """What the model says about every canvas position, ``[requests, width]``.

    Rows of positions that the policy may not write hold unspecified values.

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
        block_length: Tokens of the block, int32 ``[requests]``.
        threshold: The policy's threshold, float32 ``[requests]``.
        unmasked: Positions of the response that earlier steps unmasked and that have not
            been emitted: what may be rewritten. bool ``[requests, width]``.
        seed: The requests' seeds, int64 ``[requests]``; see ``noise.py``.
        position: Positions of the tokens in the sequence, int64 ``[requests, width]``.
        values: The numbers that the policy's ``defaults`` name, each float32 ``[requests]``.
        host_values: The same numbers on the host, one per request. A policy may branch on them
            and skip work that no request asked for; reading ``values`` would wait for the device.
        memory: What the policy's ``make_memory`` made, for these requests: change it in
            place. All zeros in the first step of a block.
    """

    tokens: torch.Tensor
    masked: torch.Tensor
    step: torch.Tensor
    steps: torch.Tensor
    block_length: torch.Tensor
    threshold: torch.Tensor
    unmasked: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor
    values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    host_values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    memory: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What a step does to the canvases, where it is more than unmasking positions.

    Attributes:
        unmask: Masked positions that get their token, bool ``[requests, width]``.
        rewrite: Unmasked positions that get their token, likewise; None for none.
            Only of a policy that ``rewrites``.
        unfinished: Blocks that want another step though no mask is left, bool
            ``[requests]``; None for none.
    """

    unmask: torch.Tensor
    rewrite: torch.Tensor | None = None
    unfinished: torch.Tensor | None = None


class UnmaskingPolicy:
    """Chooses which masked positions of a block are finished in a step.

    A policy is made once a process and has no attributes that change: what it remembers
    of a request is in the request's ``memory``. It either names a built-in ``rule``, which
    the fused ``unmask`` kernel carries out, or implements :meth:`select`. All its methods
    run on the device and must not wait for it.

    Whatever a policy does, a block ends: where nothing was chosen for too long, the most
    confident position is unmasked (``selection.py``). A policy that raises, or returns what
    it must not, fails the requests that use it and no others.
    """

    rule: ClassVar[Rule] = Rule.GIVEN
    """The kernel's rule; ``GIVEN`` where :meth:`select` decides."""

    parameters: ClassVar[frozenset[str]] = frozenset()
    """The fields of ``DiffusionParams`` that have an effect with this policy; those in
    ``defaults`` are added."""

    defaults: ClassVar[Mapping[str, float]] = {}
    """Numbers that a request may set beside ``steps`` and the threshold, and their defaults:
    ``CanvasView.values``. A name that is no field of ``DiffusionParams`` is the policy's own;
    a request sets it as ``diffusion_NAME``."""

    threshold_parameter: ClassVar[str] = "threshold"
    """The field that is handed to the policy as its threshold."""

    default_steps: ClassVar[int | None] = None
    """Steps a block where none are asked for; None: as many as the block has tokens."""

    rewrites: ClassVar[bool] = False
    """Whether the policy rewrites unmasked positions: they get statistics too."""

    boosts: ClassVar[bool] = False
    """Whether the policy adds to logits: :meth:`boost`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Counts the numbers with a default among the parameters."""
        super().__init_subclass__(**kwargs)
        cls.parameters = cls.parameters | cls.defaults.keys()

    def make_memory(self, requests: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Makes what the policy remembers of each request between the steps of a block.

        Called once, for as many requests as may run at a time.

        Args:
            requests: How many; the first dimension of every tensor.
            width: Positions of a canvas.
            device: Where the tensors belong.

        Returns:
            Tensors by name, or nothing.
        """
        return {}

    def boost(self, stats: PositionStats, canvas: CanvasView) -> tuple[torch.Tensor, torch.Tensor]:
        """Says what to add to which logits, before tokens and confidences are taken from them.

        Called ahead of the step's choice if the policy ``boosts``.

        Args:
            stats: What the logits say as they are, at temperature 1.
            canvas: The canvases.

        Returns:
            Token ids, int64, and what their logits grow by, float32, both
            ``[requests, width, n]``. What is said of one id more than once adds up.
        """
        raise NotImplementedError(f"{type(self).__name__} boosts nothing")

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor | Choice:
        """Chooses positions to unmask, for a batch of requests.

        Positions that are not masked are ignored.

        Returns:
            bool ``[requests, width]``, or a :class:`Choice`.
        """
        raise NotImplementedError(f"{type(self).__name__} names a rule")

    def steps_left(self, masked: int, step: int, steps: int, block_length: int) -> int | None:
        """How many denoising steps a block still needs.

        For built-in policies: other packages' have it from :class:`ScheduledPolicy` or not
        at all, since the engine plans by it.

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
    """Positions that a fixed schedule unmasks in a step, at least 1.

    ``block_length // steps``, and one more in the first
    ``block_length % steps`` steps (SDAR's ``get_num_transfer_tokens``).
    """
    return max(1, block_length // steps + (step < block_length % steps))


class ScheduledPolicy(UnmaskingPolicy):
    """A policy that unmasks a fixed number of positions a step, those of highest score."""

    parameters = frozenset({"steps"})

    def score(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        """What positions are ranked by, ``[requests, width]``; NaN ranks last."""
        raise NotImplementedError(f"{type(self).__name__} names a rule")

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        """Unmasks the scheduled number; see :meth:`UnmaskingPolicy.select`."""
        lowest = torch.finfo(torch.float64).min
        score = self.score(stats, canvas)
        if score.shape != canvas.masked.shape:
            raise ValueError(f"score() returned {list(score.shape)}, not {list(canvas.masked.shape)}.")
        score = score.double().nan_to_num(nan=lowest, neginf=lowest)
        # Ties go to the lower position; what is not masked comes behind all that is.
        score = score.masked_fill(~canvas.masked, -torch.inf)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        count = canvas.block_length // canvas.steps
        count = (count + (canvas.step < canvas.block_length % canvas.steps)).clamp(min=1)
        return rank < count[:, None]

    def steps_left(self, masked: int, step: int, steps: int, block_length: int) -> int | None:
        """See :meth:`UnmaskingPolicy.steps_left`."""
        count = 0
        while masked > 0:
            masked -= scheduled_count(step + count, steps, block_length)
            count += 1
        return count
