# SPDX-License-Identifier: Apache-2.0
"""Which masked positions a step settles."""

from __future__ import annotations

import torch

from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.diffusion.canvas import CanvasStates
from vllm.v1.diffusion.ops import RowStats, unmask
from vllm.v1.diffusion.policies import CanvasView, PositionStats, UnmaskingPolicy
from vllm.v1.diffusion.rules import Rule
from vllm.v1.diffusion.step import DenoisingStep


def settle(
    stats: RowStats,
    step: DenoisingStep,
    canvases: CanvasStates,
    seeds: torch.Tensor,
    overlaps: bool,
    first_only: torch.Tensor | None = None,
) -> torch.Tensor:
    """Lets each request's rule or policy choose, and writes what it chose to the canvas.

    Args:
        stats: The rows' statistics and tokens.
        step: The step.
        canvases: The canvases, changed.
        seeds: The seed of every slot, int64 ``[S]``.
        overlaps: Whether a window may not cover its block; see ``DenoisingStep``.
        first_only: Requests whose block's first position is settled and no other,
            whatever their policy, bool ``[R]``; None for none.

    Returns:
        Which requests' blocks have no mask left, bool ``[R]``.
    """
    rule = canvases.rule.gpu
    if overlaps:
        rule = rule.clone()
        rule[step.slots] = torch.where(step.covered, rule[step.slots], int(Rule.GIVEN))
    picked = _picked(stats, step, canvases, seeds)
    if picked is None and (overlaps or first_only is not None):
        picked = torch.zeros_like(step.active)
    if first_only is not None and picked is not None:
        rule = rule.clone()
        rule[step.slots] = torch.where(first_only, int(Rule.GIVEN), rule[step.slots])
        by_row = torch.repeat_interleave(first_only, step.row_start.diff(), output_size=len(step.active))
        picked = torch.where(by_row, step.active & (step.row_column == 0), picked)
    remaining = unmask(
        stats.sample,
        stats.sample_prob,
        stats.entropy,
        picked,
        step.row_start,
        step.slots,
        canvases.tokens,
        canvases.masked,
        canvases.settled_at,
        canvases.step,
        rule,
        canvases.steps.gpu,
        canvases.length,
        canvases.threshold.gpu,
    )
    written = step.active & ~canvases.masked[step.row_slot, step.row_column]
    canvases.confidence[step.row_slot, step.row_column] = torch.where(
        written, stats.sample_prob, canvases.confidence[step.row_slot, step.row_column]
    )
    if overlaps:
        canvases.step[step.slots] -= (~step.covered).to(torch.int32)
    return (remaining == 0) & step.covered


def _picked(
    stats: RowStats, step: DenoisingStep, canvases: CanvasStates, seeds: torch.Tensor
) -> torch.Tensor | None:
    """The rows chosen by policies that have no rule of the kernel's."""
    groups: dict[UnmaskingPolicy, list[int]] = {}
    for i, slot in enumerate(step.slots_np.tolist()):
        if (policy := canvases.policies.get(slot)) is not None:
            groups.setdefault(policy, []).append(i)
    if not groups:
        return None
    device = step.slots.device
    picked = torch.zeros_like(stats.sample, dtype=torch.bool)
    columns = torch.arange(canvases.width, device=device)
    for policy, members in groups.items():
        which = async_tensor_h2d(members, dtype=torch.int64, device=device)
        first, end = step.row_start[which], step.row_start[which + 1]
        inside = columns < (end - first)[:, None]
        rows = (first[:, None] + columns).clamp(max=len(picked) - 1).to(torch.int64)
        slot = step.slots[which]
        view = CanvasView(
            tokens=canvases.tokens[slot],
            masked=canvases.masked[slot] & inside,
            step=canvases.step[slot],
            steps=canvases.steps.gpu[slot],
            block_length=canvases.length[slot],
            threshold=canvases.threshold.gpu[slot],
            seed=seeds[slot],
            position=canvases.start[slot, None] + columns,
            values={
                name: async_tensor_h2d(
                    [canvases.decoding[s].values[name] for s in step.slots_np[members].tolist()],
                    dtype=torch.float32,
                    device=device,
                )
                for name in policy.defaults
            },
        )
        chosen = policy.select(
            PositionStats(
                token=stats.sample[rows],
                confidence=stats.sample_prob[rows],
                entropy=stats.entropy[rows],
                top1=stats.top1[rows],
                top2=stats.top2[rows],
            ),
            view,
        )
        picked[rows[inside]] = (chosen & view.masked)[inside]
    return picked
