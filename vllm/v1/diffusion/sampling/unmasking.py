# SPDX-License-Identifier: Apache-2.0
"""Which masked positions a step unmasks."""

from __future__ import annotations

import torch

from vllm.v1.diffusion.canvas.states import CanvasStates
from vllm.v1.diffusion.canvas.step import DenoisingStep
from vllm.v1.diffusion.kernels.row_stats import RowStats
from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.kernels.unmask import unmask
from vllm.v1.diffusion.sampling.bad_words import BadWords
from vllm.v1.diffusion.sampling.early_exits import EarlyExits
from vllm.v1.diffusion.sampling.policy_selection import PolicySelection


def unmask_positions(
    stats: RowStats,
    step: DenoisingStep,
    canvases: CanvasStates,
    policies: PolicySelection,
    exits: EarlyExits,
    overlaps: bool,
    bad_words: BadWords,
    first_only: torch.Tensor | None = None,
) -> torch.Tensor:
    """Lets each request's rule or policy choose, and writes what it chose to the canvas.

    Args:
        stats: The rows' statistics and tokens.
        step: The step.
        canvases: The canvases, changed.
        policies: The policies that have no rule of the kernel's.
        exits: What ends a block before its rule or policy does.
        overlaps: Whether a window may not cover its block; see ``DenoisingStep``.
        bad_words: May take back what was written.
        first_only: Requests whose block's first position is unmasked and no other,
            whatever their policy, bool ``[R]``; None for none.

    Returns:
        Which requests' blocks are done, bool ``[R]``.
    """
    slots = step.slots
    rule, steps = canvases.rule.gpu, canvases.steps.gpu
    capped = exits.capped(step)
    fills = _either(capped, exits.certain(stats, step))
    if fills is not None or overlaps or first_only is not None:
        rule = rule.clone()
    if fills is not None:
        # One step for all of the block.
        steps = steps.clone()
        rule[slots] = torch.where(fills, int(Rule.STATIC), rule[slots])
        steps[slots] = torch.where(fills, 1, steps[slots])
    if overlaps:
        rule[slots] = torch.where(step.covered, rule[slots], int(Rule.GIVEN))
    selection = policies.select(stats, step)
    picked = selection.unmask if selection is not None else None
    if picked is None and (overlaps or first_only is not None):
        picked = torch.zeros_like(step.active)
    if first_only is not None and picked is not None:
        if fills is not None:
            first_only = first_only & ~fills
        rule[slots] = torch.where(first_only, int(Rule.GIVEN), rule[slots])
        by_row = torch.repeat_interleave(first_only, step.row_start.diff(), output_size=len(step.active))
        picked = torch.where(by_row, step.active & (step.row_column == 0), picked)
    graded = canvases.flags.graded[step.slots_np].any()
    masked = canvases.masked[step.row_slot, step.row_column] if graded else None
    made = canvases.step[slots] if overlaps or selection is not None else None
    before = bad_words.snapshot(step)
    remaining = unmask(
        stats.sample,
        stats.sample_prob,
        stats.entropy,
        picked,
        step.row_start,
        slots,
        canvases.tokens,
        canvases.masked,
        canvases.unmasked_at,
        canvases.step,
        rule,
        steps,
        canvases.length,
        canvases.threshold.gpu,
    )
    written = None if masked is None else masked & ~canvases.masked[step.row_slot, step.row_column]
    done = remaining == 0
    if step.may_miss_block:
        done &= step.covered
    if selection is not None:
        assert made is not None
        # A step that finds no mask counts all the same.
        canvases.step[slots] = made + 1
        done &= ~selection.unfinished if capped is None else ~selection.unfinished | capped
        written = None if written is None else written | selection.rewrite
        cell = step.row_slot, step.row_column
        canvases.tokens[cell] = torch.where(selection.rewrite, stats.sample, canvases.tokens[cell])
    if overlaps:
        assert made is not None
        canvases.step[slots] = torch.where(step.covered, canvases.step[slots], made)
    if written is not None:
        cell = step.row_slot, step.row_column
        canvases.confidence[cell] = torch.where(written, stats.sample_prob, canvases.confidence[cell])
    if before is not None:
        taken_back = bad_words.take_back(step, before)
        done &= ~(taken_back & before.masked).any(dim=1)
    ended = exits.ended(step, policies.first)
    return done if ended is None else done | (ended & step.covered)


def _either(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one | other
