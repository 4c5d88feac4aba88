# SPDX-License-Identifier: Apache-2.0
"""What a request's parameters and the engine's defaults amount to: how it is denoised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vllm.v1.diffusion.policies import get_policy
from vllm.v1.diffusion.policies.parts.multi_block import OPEN_BLOCKS
from vllm.v1.generation_loop.plug_ins import is_plug_in

CACHED = ("prefix", "dual")
"""Cache modes in which a block's later steps begin at the block."""


@dataclass(frozen=True)
class Decoding:
    """How a request is denoised, with every default filled in.

    Attributes:
        values: The further numbers that the algorithm reads.
        max_steps: Most denoising steps per block; None for no limit.
        exit_threshold: Confidence at which a whole block is finished; None for never.
        stop_ids: Tokens that end a block, as they end the text; empty for none.
        constrained: Whether a grammar decides along which positions unmask.
        vetoes: Whether a step may take back what it finished (bad words of several
            tokens).
        late_ids: Tokens that are unmasked last; empty for none.
        template: The whole answer, ``infill.HOLE`` where a token is to be written.
        holes: What a template's holes begin with, of its length; None for what the model's noise is.
        stepwise: Whether a block takes as many steps as it has tokens, since no one asked for
            another number.
        seeded: Whether a causal pass makes a block's first token.
        causal: Whether prompt and finished blocks are encoded by passes that are causal by token,
            of models that can do both.
        verifies: Whether a block is a draft, and what leaves is what a causal pass makes of it.
        drops_mask: Whether the mask token counts for nothing, not even in the softmax.
        canvas: Most tokens of a canvas, of models in which every position sees all of it; None where
            the answer is one canvas.
        budget: Tokens of the answer before the end of the thinking is written, and the id that
            ends it; None for no limit.
        targets: Tokens that are given behind the prompt: each step writes those of the positions that it
            unmasks, whatever it draws, and nothing is written behind them; None for a request of its own.
        hidden: Which of the targets are written, where the model sees the others; None for all. What is
            written of these is the mask token: it is all that a later step of the sample may see.
        guidance: Scale of classifier-free guidance; 0 for none.
        watched: Whether every step says how it leaves the open block.
        expand_budget: How often an answer may grow, of models that insert masks; None for their default.
        row_candidates: Masked positions that a step computes, if it unmasks no more; None where it computes
            the whole block.
    """

    algorithm: str
    steps: int
    block_length: int
    threshold: float
    trace: bool
    values: Mapping[str, float] = field(default_factory=dict)
    cache: str | None = None
    max_steps: int | None = None
    exit_threshold: float | None = None
    stop_ids: tuple[int, ...] = ()
    constrained: bool = False
    vetoes: bool = False
    late_ids: tuple[int, ...] = ()
    template: tuple[int, ...] | None = None
    holes: tuple[int, ...] | None = None
    stepwise: bool = False
    seeded: bool = False
    causal: bool = True
    verifies: bool = False
    drops_mask: bool = False
    budget: tuple[int, int] | None = None
    canvas: int | None = None
    expand_budget: int | None = None
    targets: tuple[int, ...] | None = None
    hidden: tuple[int, ...] | None = None
    guidance: float = 0.0
    watched: bool = False
    row_candidates: int | None = None

    @property
    def foreseeable(self) -> bool:
        """Whether only the algorithm and ``max_steps`` decide when a block ends."""
        changed = self.vetoes or self.constrained or self.template is not None
        # The last block of the targets may end before the block does, unless it is cut there.
        changed |= self.targets is not None and self.cache is None
        changed |= self.hidden is not None
        return not changed and self.exit_threshold is None and not self.stop_ids

    @property
    def exits(self) -> bool:
        """Whether a block may end before its algorithm ends it."""
        return self.max_steps is not None or self.exit_threshold is not None or bool(self.stop_ids)

    @property
    def speculates(self) -> bool:
        """Whether drafts are verified token by token before they are written."""
        return get_policy(self.algorithm).speculates

    @property
    def open_blocks(self) -> int:
        """Most blocks that are open at a time."""
        return int(self.values[OPEN_BLOCKS]) if get_policy(self.algorithm).opens_blocks else 1

    def within(self, room: int) -> Decoding:
        """The same for a canvas of ``room`` tokens, which may be less than a block."""
        if room >= self.block_length:
            return self
        return replace(self, block_length=room, steps=self.steps_of(room))

    def steps_of(self, length: int) -> int:
        """Steps of a block of ``length`` tokens; the last one of a canvas may be short."""
        return length if self.stepwise else self.steps


def foreseen_steps(
    decoding: Decoding, masked: int, block_length: int | None = None, first_alone: bool = False
) -> int | None:
    """Denoising steps that a block takes, where that does not depend on the model.

    Args:
        decoding: How the request is denoised.
        masked: Masks that the block begins with.
        block_length: Tokens of the block, where a canvas ends inside it.
        first_alone: Whether the first step unmasks the first mask and no other.
    """
    policy = get_policy(decoding.algorithm)
    if not decoding.foreseeable or (decoding.cache in CACHED and is_plug_in(type(policy))):
        # Where a window may begin at the block, a policy that fails must not break the plan.
        return None
    done = min(masked, int(first_alone))
    length = decoding.block_length if block_length is None else block_length
    left = policy.steps_left(masked - done, done, decoding.steps_of(length), length)
    return None if left is None else min(done + left, decoding.max_steps or done + left)
