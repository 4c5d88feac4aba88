# SPDX-License-Identifier: Apache-2.0
"""The interface of an unmasking policy.

Versioned like ``GenerationLoop``: what is written here holds for every release whose
``UNMASKING_POLICY_API`` is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from typing_extensions import override

from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.policies.parameter import Parameter

UNMASKING_POLICY_API = 1
"""Version of this interface. A policy written for another one is refused."""

RULE_NUMBERS: Mapping[Rule, str] = {
    Rule.DYNAMIC: "threshold",
    Rule.THRESHOLD: "threshold",
    Rule.ENTROPY_BOUNDED: "entropy_bound",
    Rule.FACTOR: "factor",
}
"""The number that each rule of the kernel reads; the others read none."""


_NOTHING = torch.zeros(0)
"""What a policy is not given."""


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
class Proposals:
    """What a policy that redraws its blocks reads beside the statistics, ``[requests, width]``.

    Attributes:
        token: The token that the model proposes, the mask token among all others, int64.
        confidence: Its probability, float32.
        plain: The best token that is neither the mask token nor one of ``edit_ids``, int64.
        mask_id: Id of the mask token.
        edit_ids: Ids of the delete and the split token; none of a model that has none.
        best_other: The best token of one position of each request: takes the columns, int64
            ``[requests]``, and ids that are excluded, int64 ``[requests, n]``, -1 for none.
    """

    token: torch.Tensor
    confidence: torch.Tensor
    plain: torch.Tensor
    mask_id: int
    edit_ids: tuple[int, ...]
    best_other: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class CanvasView:
    """The requests' canvases at the start of a step.

    Attributes:
        tokens: Canvas token ids, int64 ``[requests, width]``.
        masked: Whether a position is still masked, bool ``[requests, width]``.
        step: Denoising steps already made on the block, int32 ``[requests]``.
        steps: Denoising steps asked for, int32 ``[requests]``.
        block_length: Tokens of the block, int32 ``[requests]``; of a policy that ``opens_blocks``, of all
            blocks of the canvas.
        unmasked: Positions of the response that earlier steps unmasked and that have not
            been emitted: what may be rewritten. bool ``[requests, width]``.
        seed: The requests' seeds, int64 ``[requests]``; see ``noise.py``.
        position: Positions of the tokens in the sequence, int64 ``[requests, width]``.
        values: The policy's ``numbers``, each float32 ``[requests]``.
        host_values: The same numbers on the host, one per request. A policy may branch on them
            and skip work that no request asked for; reading ``values`` would wait for the device.
        memory: What the policy's ``make_memory`` made, for these requests, all zeros in the
            first step of a block. The policy changes the tensors in place.
        proposals: See :class:`Proposals`; None of a policy that does not redraw.
        room: Most tokens that the block may have, int64 ``[requests]``; None of a policy that is not
            ``elastic``.
        round_: Drafts of the block that have been written, int32 ``[requests]``; of a policy that
            ``speculates``, as the next two.
        accepted: Positions that this step's verification unmasks, bool ``[requests, width]``.
        waits: Requests whose draft is verified before anything is written, bool ``[requests]``.
        part_length: Tokens of one of the canvas's blocks, int32 ``[requests]``; of a policy that
            ``opens_blocks``.
    """

    tokens: torch.Tensor
    masked: torch.Tensor
    step: torch.Tensor
    steps: torch.Tensor
    block_length: torch.Tensor
    unmasked: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor
    values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    host_values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    proposals: Proposals | None = None
    room: torch.Tensor | None = None
    round_: torch.Tensor = _NOTHING
    accepted: torch.Tensor = _NOTHING
    waits: torch.Tensor = _NOTHING
    part_length: torch.Tensor = _NOTHING


@dataclass(frozen=True)
class Boost:
    """What :meth:`UnmaskingPolicy.boost` adds to logits, before tokens and confidences are taken.

    Attributes:
        ids: Token ids, int64 ``[requests, width, n]``. Amounts of one id add up.
        growth: What their logits grow by, float32 ``[requests, width, n]``.
    """

    ids: torch.Tensor
    growth: torch.Tensor


@dataclass(frozen=True)
class Rewrite:
    """What :meth:`UnmaskingPolicy.rewrite` does with positions that are unmasked already.

    Attributes:
        positions: Unmasked positions that get their token again, bool ``[requests, width]``.
        unfinished: Blocks that want another step though no mask is left, bool
            ``[requests]``; None for none.
        remask: Unmasked positions that become masks again, bool ``[requests, width]``; None for none.
        fill: A token of each request, -1 for none, int64 ``[requests]``: once the step has been made, all
            behind the first such token of the answer becomes it, while a mask is left. None for none.
    """

    positions: torch.Tensor
    unfinished: torch.Tensor | None = None
    remask: torch.Tensor | None = None
    fill: torch.Tensor | None = None


@dataclass(frozen=True)
class Redrawn:
    """What :meth:`UnmaskingPolicy.redraw` makes of blocks, ``[requests, width]``.

    Attributes:
        tokens: Token ids, int64. What the prompt or a template gave must be left as it is.
        masked: Positions that are masked now, bool.
        source: Column from which a token came, in which it stood or was written, int64; -1 for a new mask.
        written: Columns that the step wrote, before tokens moved, bool.
        confidence: How sure the step was of what it wrote in a column, float32.
        unfinished: Blocks that want another step, bool ``[requests]``.
        length: Tokens of the block from now on, int64 ``[requests]``; None to keep them as many. The step
            that fills the block keeps them as many.
    """

    tokens: torch.Tensor
    masked: torch.Tensor
    source: torch.Tensor
    written: torch.Tensor
    confidence: torch.Tensor
    unfinished: torch.Tensor
    length: torch.Tensor | None = None


class UnmaskingPolicy:
    """Chooses which masked positions of a block are finished in a step.

    A policy is made once per process and has no attributes that change: what it remembers
    of a request is in the request's ``memory``. It either names a built-in ``rule``, which
    the fused ``unmask`` kernel carries out, or implements :meth:`select`. All its methods
    run on the device and must not wait for it.

    Whatever a policy does, a block ends: where nothing was chosen for too long, the most
    confident position is unmasked (``selection.py``). A policy that raises, or returns what
    it must not, fails the requests that use it and no others.
    """

    api_version: ClassVar[int] = UNMASKING_POLICY_API
    """The version of this interface that the policy is written for."""

    rule: ClassVar[Rule] = Rule.GIVEN
    """The kernel's rule; ``GIVEN`` where :meth:`select` decides."""

    numbers: ClassVar[Mapping[str, Parameter]] = {}
    """The numbers that the policy reads, by name: ``CanvasView.values``. A request sets one as
    ``diffusion_NAME``, the operator in ``--diffusion-config``. A ``rule`` reads the number that
    ``RULE_NUMBERS`` names, which must be one of them."""

    uses_steps: ClassVar[bool] = False
    """Whether ``diffusion_steps`` has an effect: ``CanvasView.steps``."""

    elastic: ClassVar[bool] = False
    """Whether the policy decides how long an answer is: ``Redrawn.length``. For built-in policies. An answer
    is one block then, and begins with ``initial_length`` masks."""

    whole_answer: ClassVar[bool] = False
    """Whether the policy is for bidirectional models, and an answer, or a canvas of it, must be one block.
    For built-in policies."""

    rewrites_text: ClassVar[bool] = True
    """Whether :meth:`rewrite` changes text: false where all it changes is behind an end token. For built-in
    policies."""

    speculates: ClassVar[bool] = False
    """Whether a step may leave a draft to a verification: :meth:`wants`. For built-in policies."""

    opens_blocks: ClassVar[bool] = False
    """Whether the policy decides in several blocks at a time, as many as ``open_blocks`` of a request says.
    For built-in policies."""

    noise: ClassVar[str] = "mask"
    """What stands at a position that is not unmasked: ``mask``, or ``uniform``, a random token."""

    default_steps: ClassVar[int | None] = None
    """Steps per block where none are asked for; None: as many as the block has tokens."""

    @property
    def parameters(self) -> frozenset[str]:
        """Names of the parameters that have an effect with this policy and not with every one."""
        return frozenset(self.numbers) | ({"steps"} if self.uses_steps else set())

    @property
    def redraws(self) -> bool:
        """Whether the policy inserts and deletes: it has a :meth:`redraw`."""
        return type(self).redraw is not UnmaskingPolicy.redraw

    @property
    def boosts(self) -> bool:
        """Whether the policy adds to logits: it has a :meth:`boost`."""
        return type(self).boost is not UnmaskingPolicy.boost

    @property
    def rewrites(self) -> bool:
        """Whether the policy rewrites unmasked positions: it has a :meth:`rewrite` or a :meth:`redraw`."""
        return self.redraws or type(self).rewrite is not UnmaskingPolicy.rewrite

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

    def boost(self, stats: PositionStats, canvas: CanvasView) -> Boost:
        """Adds to logits, before tokens and confidences are taken from them.

        Called ahead of the step's choice.

        Args:
            stats: What the logits say as they are, at temperature 1.
            canvas: The canvases.
        """
        raise NotImplementedError(f"{type(self).__name__} boosts nothing")

    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        """Chooses positions to unmask, for a batch of requests.

        Positions that are not masked are ignored.

        Returns:
            bool ``[requests, width]``.
        """
        raise NotImplementedError(f"{type(self).__name__} names a rule")

    def rewrite(self, stats: PositionStats, canvas: CanvasView) -> Rewrite:
        """Chooses unmasked positions to write or to mask again, with the statistics that :meth:`select` had.

        Called after :meth:`select`, in every step, with what was masked before it. Unmasked
        positions of the open block have statistics only if the policy has this method.
        """
        raise NotImplementedError(f"{type(self).__name__} rewrites nothing")

    def may_rewrite(self, values: Mapping[str, float]) -> bool:
        """Whether a request may have positions rewritten, by its numbers; if none may, nothing asks.

        For built-in policies.
        """
        return True

    def wants(
        self, stats: PositionStats, canvas: CanvasView, on: torch.Tensor, vocab_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Says which drafts are to be verified before anything is written. For built-in policies.

        Args:
            stats: What the draft says.
            canvas: The canvases.
            on: What was returned of the draft before, bool ``[requests]``.
            vocab_size: Ids of the vocabulary.

        Returns:
            Which drafts, and what is to be remembered of them, bool ``[requests]`` each.
        """
        raise NotImplementedError(f"{type(self).__name__} does not speculate")

    def drafted(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        """Positions of a draft that hold what the step says, not what the canvas does; arguments likewise."""
        return canvas.masked

    def redraw(self, stats: PositionStats, canvas: CanvasView) -> Redrawn:
        """Says what blocks are to be after the step, where tokens are inserted and deleted.

        Called in the place of :meth:`select` and :meth:`rewrite`. For built-in policies.
        """
        raise NotImplementedError(f"{type(self).__name__} redraws nothing")

    def steps_left(self, masked: int, step: int, steps: int, block_length: int) -> int | None:
        """How many denoising steps a block still needs.

        For built-in policies: other packages' have it from :class:`ScheduledPolicy` or not
        at all, since the engine plans by it.

        Args:
            masked: Masked positions left.
            step: Steps already made on the block.
            steps: Steps asked for per block.
            block_length: Tokens per block.

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
    """A policy that unmasks a fixed number of positions per step, those of highest score."""

    uses_steps = True

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

    @override
    def steps_left(self, masked: int, step: int, steps: int, block_length: int) -> int | None:
        count = 0
        while masked > 0:
            masked -= scheduled_count(step + count, steps, block_length)
            count += 1
        return count
