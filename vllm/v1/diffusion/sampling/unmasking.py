# SPDX-License-Identifier: Apache-2.0
"""Which masked positions a step unmasks.

A step has three parts. *Orders* say by which rule each request's positions are chosen: the
policy's, unless something overrides it. One call of ``unmask`` chooses and writes. *After-steps*
then correct the canvases and decide which blocks are done.

Overrides, weakest first; each replaces what those before it said of its requests:

1. the policy: its rule in the kernel, or the positions that it chose itself;
2. the first position alone, where the mode says so (``RowLayout.first_only``);
3. the whole block, where the request's last step is due or all positions are certain;
4. nothing, where the window does not cover the block: the step only commits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.kernels.row_stats import RowStats
from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.kernels.unmask import unmask
from vllm.v1.diffusion.policies.base import Redrawn
from vllm.v1.diffusion.sampling.bad_words import BadWords, Snapshot
from vllm.v1.diffusion.sampling.early_exits import EarlyExits
from vllm.v1.diffusion.sampling.policy_selection import PolicySelection, Selection
from vllm.v1.diffusion.sampling.rows import RowLayout


class Override(NamedTuple):
    """What some requests' positions are chosen by in the place of their policy.

    Attributes:
        requests: Which of the R requests, bool ``[R]``.
        rule: The kernel's rule.
        steps: Steps of a block under that rule; None to keep the request's.
        chosen: Rows that ``Rule.GIVEN`` unmasks, bool ``[N]``; None for none.
    """

    requests: torch.Tensor
    rule: Rule
    steps: int | None = None
    chosen: torch.Tensor | None = None


class Orders(NamedTuple):
    """What the kernel is given.

    Attributes:
        rule: By slot, int32 ``[S]``.
        steps: By slot, int32 ``[S]``.
        chosen: Rows that ``Rule.GIVEN`` unmasks, bool ``[N]``; None where no request has it.
    """

    rule: torch.Tensor
    steps: torch.Tensor
    chosen: torch.Tensor | None

    @classmethod
    def of(
        cls,
        canvases: CanvasStates,
        step: DenoisingStep,
        chosen: torch.Tensor | None,
        overrides: Iterable[Override],
    ) -> Orders:
        """Applies overrides, in their order, to what the requests' policies say.

        Args:
            canvases: The canvases, whose tables are kept.
            step: The step.
            chosen: Rows that the policies chose; None where none did.
            overrides: The overrides, weakest first.
        """
        rule, steps = canvases.rule.gpu, canvases.steps.gpu
        for override in overrides:
            requests, slots = override.requests, step.slots
            rule = rule.clone() if rule is canvases.rule.gpu else rule
            rule[slots] = torch.where(requests, int(override.rule), rule[slots])
            if override.steps is not None:
                steps = steps.clone() if steps is canvases.steps.gpu else steps
                steps[slots] = torch.where(requests, override.steps, steps[slots])
            if override.rule is Rule.GIVEN:
                # Rows of uncovered blocks are not active: nothing is chosen of them.
                chosen = torch.zeros_like(step.active) if chosen is None else chosen
                if override.chosen is not None:
                    rows = torch.repeat_interleave(
                        requests, step.row_start.diff(), output_size=len(step.active)
                    )
                    chosen = torch.where(rows, override.chosen, chosen)
        return cls(rule, steps, chosen)


@dataclass
class Unmasked:
    """A step behind its unmasking.

    Attributes:
        stats: The rows' statistics and tokens.
        step: The step.
        overlaps: Whether a window may not cover its block; see ``DenoisingStep``.
        selection: What the policies chose; None where none was asked.
        capped: Requests that make the last step they allow for a block, bool ``[R]``; None for none.
        made: Steps made on each block before this one, ``[R]``; None where no after-step needs them.
        masked: Rows that were masked, bool ``[N]``; None where no one asks how sure a step was.
        before: The canvases before; None where nothing may be taken back.
        done: Blocks that are done, bool ``[R]``.
    """

    stats: RowStats
    step: DenoisingStep
    overlaps: bool
    selection: Selection | None
    capped: torch.Tensor | None
    made: torch.Tensor | None
    masked: torch.Tensor | None
    before: Snapshot | None
    done: torch.Tensor


class Unmasking:
    """Lets each request's rule or policy choose, and writes what it chose to the canvas."""

    def __init__(
        self,
        canvases: CanvasStates,
        policies: PolicySelection,
        exits: EarlyExits,
        bad_words: BadWords,
        rows: RowLayout,
    ) -> None:
        """Makes it.

        Args:
            canvases: The canvases of this worker's requests, changed.
            policies: The policies that have no rule of the kernel's.
            exits: What ends a block before its rule or policy does.
            bad_words: May take back what was written.
            rows: The mode's.
        """
        self.canvases = canvases
        self.policies = policies
        self.exits = exits
        self.bad_words = bad_words
        self.rows = rows
        self._after: tuple[Callable[[Unmasked], None], ...] = (
            self._count,
            self._rewrite,
            self._grade,
            self._redraw,
            self._take_back,
            self._fill,
            self._let_mode_change,
            self._end_early,
        )

    def __call__(self, stats: RowStats, step: DenoisingStep, overlaps: bool) -> torch.Tensor:
        """Makes one step.

        Args:
            stats: The rows' statistics and tokens.
            step: The step.
            overlaps: Whether a window may not cover its block; see ``DenoisingStep``.

        Returns:
            Which requests' blocks are done, bool ``[R]``.
        """
        canvases, slots = self.canvases, step.slots
        capped = self.exits.capped(step)
        whole = _either(capped, self.exits.certain(stats, step))
        selection = self.policies.select(stats, step)
        overrides = []
        if (first := self.rows.first_only(step)) is not None:
            at_first = step.active & (step.row_column == 0)
            overrides.append(Override(first, Rule.GIVEN, chosen=at_first))
        if whole is not None:
            overrides.append(Override(whole, Rule.STATIC, steps=1))
        if overlaps:
            overrides.append(Override(~step.covered, Rule.GIVEN))
        chosen = None if selection is None else selection.unmask
        orders = Orders.of(canvases, step, chosen, overrides)
        graded = canvases.flags.graded[step.slots_np].any()
        masked = canvases.masked[step.row_slot, step.row_column] if graded else None
        made = canvases.step[slots] if overlaps or selection is not None else None
        before = self.bad_words.snapshot(step)
        remaining = unmask(
            stats.sample,
            stats.sample_prob,
            stats.entropy,
            orders.chosen,
            step.row_start,
            slots,
            canvases.tokens,
            canvases.masked,
            canvases.unmasked_at,
            canvases.step,
            orders.rule,
            orders.steps,
            canvases.length,
            canvases.threshold.gpu,
        )
        done = remaining == 0
        if step.may_miss_block:
            done &= step.covered
        unmasked = Unmasked(stats, step, overlaps, selection, capped, made, masked, before, done)
        for after in self._after:
            after(unmasked)
        return unmasked.done

    def _count(self, unmasked: Unmasked) -> None:
        """Counts the step of each covered block; one that finds no mask counts where a policy asks."""
        step, made = unmasked.step, unmasked.made
        if made is None:
            return
        now = self.canvases.step[step.slots] if unmasked.selection is None else made + 1
        if unmasked.overlaps:
            now = torch.where(step.covered, now, made)
        self.canvases.step[step.slots] = now

    def _rewrite(self, unmasked: Unmasked) -> None:
        """Writes again what policies want written again, and keeps open what they want kept open."""
        selection, step = unmasked.selection, unmasked.step
        if selection is None:
            return
        capped = unmasked.capped
        unmasked.done &= ~selection.unfinished if capped is None else ~selection.unfinished | capped
        cell, tokens = (step.row_slot, step.row_column), self.canvases.tokens
        tokens[cell] = torch.where(selection.rewrite, unmasked.stats.sample, tokens[cell])
        if selection.remask is not None:
            self._remask(selection.remask, unmasked)

    def _remask(self, remask: torch.Tensor, unmasked: Unmasked) -> None:
        """Makes unmasked positions masks again; a request's last step makes none."""
        canvases, step = self.canvases, unmasked.step
        if unmasked.capped is not None:
            counts = step.row_start.diff()
            remask = remask & ~torch.repeat_interleave(unmasked.capped, counts, output_size=len(remask))
        cell = step.row_slot, step.row_column
        canvases.tokens[cell] = torch.where(remask, canvases.mask_token_id, canvases.tokens[cell])
        canvases.unmasked_at[cell] = torch.where(remask, -1, canvases.unmasked_at[cell])
        canvases.masked[cell] |= remask
        unmasked.done &= ~canvases.masked[step.slots].any(dim=1)

    def _grade(self, unmasked: Unmasked) -> None:
        """Keeps how sure the step was of what it wrote, where somebody reads that."""
        if unmasked.masked is None:
            return
        cell = unmasked.step.row_slot, unmasked.step.row_column
        written = unmasked.masked & ~self.canvases.masked[cell]
        if unmasked.selection is not None:
            written = written | unmasked.selection.rewrite
        for table, values in (
            (self.canvases.confidence, unmasked.stats.sample_prob),
            (self.canvases.entropy, unmasked.stats.entropy),
        ):
            table[cell] = torch.where(written, values, table[cell])

    def _redraw(self, unmasked: Unmasked) -> None:
        """Writes blocks of which a policy says as a whole what they are to be."""
        if unmasked.selection is None:
            return
        assert unmasked.made is not None
        step, made = unmasked.step, unmasked.made
        entropies = unmasked.stats.entropy
        for which, drawn in unmasked.selection.redrawn:
            slots, covered, entropy = step.slots[which], step.covered[which], None
            if unmasked.masked is not None:
                rows = step.row_start[:-1][which, None] + self.canvases.columns
                entropy = entropies[rows.clamp(max=len(entropies) - 1)]
            full = _redrawn(self.canvases, slots, drawn, entropy, covered, made[which])
            unmasked.done[which] = full & step.covered[which] & ~drawn.unfinished

    def _take_back(self, unmasked: Unmasked) -> None:
        """Masks again what completes a bad word."""
        before = unmasked.before
        if before is not None:
            taken_back = self.bad_words.take_back(unmasked.step, before)
            unmasked.done &= ~(taken_back & before.masked).any(dim=1)

    def _fill(self, unmasked: Unmasked) -> None:
        """Lets end tokens take all that is behind them, of requests whose policy wants it."""
        if unmasked.selection is None or (token := unmasked.selection.fill) is None:
            return
        assert unmasked.made is not None
        canvases, slots, covered = self.canvases, unmasked.step.slots, unmasked.step.covered
        token, made = token[:, None], unmasked.made[:, None]
        tokens, masked, at = canvases.tokens[slots], canvases.masked[slots], canvases.unmasked_at[slots]
        # What the prompt or a template gives was unmasked in no step.
        ends = ((at >= 0) & (tokens == token)).to(torch.int32)
        behind = (ends.cumsum(dim=1) > ends) & (masked | (at >= 0))
        behind &= (masked.any(dim=1) & covered)[:, None]
        canvases.tokens[slots] = torch.where(behind, token, tokens)
        canvases.unmasked_at[slots] = torch.where(behind & masked, made, at)
        for table, given in ((canvases.confidence, 1.0), (canvases.entropy, 0.0)):
            table[slots] = table[slots].masked_fill(behind, given)
        canvases.masked[slots] = masked = masked & ~behind
        filled = (token[:, 0] >= 0) & covered & ~masked.any(dim=1)
        unmasked.done = unmasked.done | filled

    def _let_mode_change(self, unmasked: Unmasked) -> None:
        """Lets the mode write to the canvases."""
        for after in self.rows.after_steps:
            unmasked.done = after(unmasked.stats, unmasked.step, unmasked.done)

    def _end_early(self, unmasked: Unmasked) -> None:
        """Ends blocks that hold a stop token and no mask before it."""
        step = unmasked.step
        ended = self.exits.ended(step, self.policies.first)
        if ended is not None:
            unmasked.done = unmasked.done | (ended & step.covered)


def _redrawn(
    canvases: CanvasStates,
    slots: torch.Tensor,
    drawn: Redrawn,
    entropy: torch.Tensor | None,
    covered: torch.Tensor,
    made: torch.Tensor,
) -> torch.Tensor:
    """Writes blocks that a policy redrew; whether no mask is left, bool ``[n]``.

    Args:
        canvases: The canvases, changed.
        slots: The requests' slots, ``[n]``.
        drawn: Their blocks.
        entropy: Of what the step says of each column, before tokens moved, float32 ``[n, W]``; None where
            nobody reads how sure the step was.
        covered: Whether the step's window covers the block, bool ``[n]``.
        made: Steps made on the block before, int32 ``[n]``.
    """
    tokens, masked = canvases.tokens[slots], canvases.masked[slots]
    changed = ((drawn.tokens != tokens) | (drawn.masked != masked)) & covered[:, None]
    source = drawn.source.clamp(min=0)
    grades = () if entropy is None else ((canvases.confidence, drawn.confidence), (canvases.entropy, entropy))
    for table, new in grades:
        held = table[slots]
        graded = torch.where(drawn.written, new, held).gather(1, source)
        table[slots] = torch.where(covered[:, None], graded, held)
    canvases.tokens[slots] = torch.where(changed, drawn.tokens, tokens)
    canvases.masked[slots] = masked = torch.where(changed, drawn.masked, masked)
    canvases.unmasked_at[slots] = torch.where(changed, made[:, None], canvases.unmasked_at[slots])
    if drawn.length is not None:
        length = torch.where(covered, drawn.length, canvases.length[slots])
        canvases.length[slots] = length.to(canvases.length.dtype)
    return ~masked.any(dim=1)


def _either(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one | other
