# SPDX-License-Identifier: Apache-2.0
"""``insert_delete``: a block whose tokens are written, rewritten, deleted and inserted (LLaDA2.2)."""

from typing import ClassVar, NamedTuple

import torch
from typing_extensions import override

from vllm.v1.diffusion.policies.adaptive.edit import Edit
from vllm.v1.diffusion.policies.base import (
    CanvasView,
    PositionStats,
    Proposals,
    Redrawn,
    UnmaskingPolicy,
)

MOST_POST_STEPS = 256
"""Bounds what is remembered of a block: a row of tokens per step."""


class InsertDelete(UnmaskingPolicy):
    """Writes, rewrites, deletes and inserts tokens of the open block (LLaDA2.2).

    So does SGLang's ``JointThresholdInDel``.

    A step fills masks: all above the threshold if they are more than the masks that earlier steps have
    inserted, else so many of the most probable that one of the block's first masks is among them; all of
    them once none of the first masks is left. A position that is filled gets another token where the model
    is surer of it than ``edit_threshold``. The proposal of the delete token drops a position, and that of
    the split token puts a mask before it; what leaves the block on the right is lost, and masks fill it up.

    Steps in which none of the block's first masks is left are counted. The ``max_post_steps``-th of them
    is the block's last and writes ordinary tokens only; a step that writes nothing ends the block too. Where
    a step finds a block that an earlier step has found already, the least sure of its changes writes
    the best token that was not written in that place before.
    """

    numbers: ClassVar = Edit.numbers

    @override
    def make_memory(self, requests: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        most = width + MOST_POST_STEPS + 1
        count = torch.zeros(requests, dtype=torch.int64, device=device)
        return {
            "post_steps": count,
            "original": torch.zeros(requests, width, dtype=torch.bool, device=device),
            "found": count.new_zeros(requests, most),
            "written": torch.zeros(requests, width, most, dtype=torch.int32, device=device),
        }

    @override
    def redraw(self, stats: PositionStats, canvas: CanvasView) -> Redrawn:
        proposals = canvas.proposals
        assert proposals is not None
        memory, masked, tokens = canvas.memory, canvas.masked, canvas.tokens
        number = canvas.step.to(torch.int64)
        original = torch.where(number[:, None] == 0, masked, memory["original"])
        open_ = original & masked
        counts = _Counts(open_.sum(dim=1), masked.sum(dim=1))
        memory["post_steps"] += counts.original == 0
        most = canvas.values["max_post_steps"].to(torch.int64)
        final = (most > 0) & (memory["post_steps"] >= most) | (most == 0) & (counts.original == 0)
        final |= number >= canvas.block_length + most

        fallback = open_ & (proposals.token == proposals.mask_id) & ~final[:, None]
        token = torch.where(fallback, stats.token, proposals.token)
        confidence = torch.where(fallback, stats.confidence, proposals.confidence).nan_to_num(nan=-1.0)
        fill = _fill(confidence, masked, counts, canvas.values["threshold"], final)
        # Without steps after the first masks, the one that fills the last of them is final.
        closes = (most == 0) & (counts.original > 0) & ~(open_ & ~fill).any(dim=1)
        final |= closes
        fill = torch.where(closes[:, None], masked, fill)
        edit = canvas.unmasked & (token != tokens) & (confidence > canvas.values["edit_threshold"][:, None])
        write = fill | edit

        delete, split = proposals.edit_ids
        special = (token == proposals.mask_id) | (token == delete) | (token == split)
        token = torch.where(final[:, None] & special, proposals.plain, token)
        token = self._unstuck(canvas, token, confidence, write & (token != tokens), open_, final)
        written = torch.where(write, token, -1)
        place = number[:, None, None].expand(-1, masked.shape[1], 1)
        memory["written"].scatter_(2, place, written[..., None].to(torch.int32))

        placed, source = _rebuilt(tokens, written, proposals)
        kept = original.gather(1, source.clamp(min=0)) & (source >= 0)
        memory["original"].copy_(kept)
        left = (masked | canvas.unmasked) & (placed == proposals.mask_id)
        return Redrawn(placed, left, source, write, confidence, write.any(dim=1) & ~final)

    @staticmethod
    def _unstuck(
        canvas: CanvasView,
        token: torch.Tensor,
        confidence: torch.Tensor,
        changes: torch.Tensor,
        open_: torch.Tensor,
        final: torch.Tensor,
    ) -> torch.Tensor:
        """Takes another token where a block is found again, and notes the block, ``[requests, width]``."""
        proposals, memory, tokens = canvas.proposals, canvas.memory, canvas.tokens
        assert proposals is not None
        number = canvas.step.to(torch.int64)[:, None]
        before = torch.arange(memory["found"].shape[1], device=tokens.device) < number
        name = _name_of(tokens)[:, None]
        again = (before & (memory["found"] == name)).any(dim=1)
        memory["found"].scatter_(1, number, name)
        least = confidence.masked_fill(~changes, torch.inf).argmin(dim=1, keepdim=True)
        column = least[..., None].expand(-1, -1, memory["written"].shape[2])
        excluded = memory["written"].gather(1, column)[:, 0].masked_fill(~before, -1).to(torch.int64)
        mask = torch.where(open_.gather(1, least), proposals.mask_id, -1)
        other = proposals.best_other(least[:, 0], torch.cat((excluded, mask), dim=1))
        stuck = (again & ~final & changes.any(dim=1))[:, None]
        return token.scatter(1, least, torch.where(stuck, other[:, None], token.gather(1, least)))


class _Counts(NamedTuple):
    """Masks of each block, int64 ``[requests]``: of those it began with, and all."""

    original: torch.Tensor
    all: torch.Tensor


def _fill(
    confidence: torch.Tensor,
    masked: torch.Tensor,
    counts: _Counts,
    threshold: torch.Tensor,
    final: torch.Tensor,
) -> torch.Tensor:
    """The masks that a step fills, bool ``[requests, width]``."""
    needed = (1 + counts.all - counts.original)[:, None]
    sure = masked & (confidence > threshold[:, None])
    score = confidence.masked_fill(~masked, -torch.inf)
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    fill = torch.where(sure.sum(dim=1, keepdim=True) >= needed, sure, masked & (rank < needed))
    return torch.where((final | (counts.original == 0))[:, None], masked, fill)


def _rebuilt(
    tokens: torch.Tensor, written: torch.Tensor, proposals: Proposals
) -> tuple[torch.Tensor, torch.Tensor]:
    """Drops positions that delete, and puts a mask before the old content of those that split.

    Args:
        tokens: The blocks before the step, int64 ``[requests, width]``.
        written: What it wrote, -1 where it wrote nothing, int64 ``[requests, width]``.
        proposals: For the ids.

    Returns:
        The blocks after it, and the column from which each token came, -1 for a new mask; both int64
        ``[requests, width]``.
    """
    delete, split = proposals.edit_ids
    deletes, splits = written == delete, written == split
    requests, width = tokens.shape
    room = 1 + splits.to(torch.int64) - deletes.to(torch.int64)
    # Twice the width holds every split; one column more takes what is dropped.
    nowhere = 2 * width
    target = torch.where(deletes, nowhere, room.cumsum(dim=1) - room + splits)
    source = torch.full((requests, nowhere + 1), -1, dtype=torch.int64, device=tokens.device)
    columns = torch.arange(width, device=tokens.device).expand(requests, -1)
    source = source.scatter_(1, target, columns)[:, :width]
    content = torch.where((written < 0) | splits, tokens, written)
    content = content.gather(1, source.clamp(min=0))
    return torch.where(source < 0, proposals.mask_id, content), source


def _name_of(tokens: torch.Tensor) -> torch.Tensor:
    """A number of 63 bits for the content of each block, int64 ``[requests]``.

    Two contents of one request's block share a number with a probability of about 1e-19.
    """
    columns = torch.arange(1, tokens.shape[1] + 1, dtype=torch.int64, device=tokens.device)
    mixed = _mixed(tokens * 0x2545F4914F6CDD1D + columns * 0x1B873593CC9E2D51)
    return _mixed(mixed.sum(dim=1))


def _mixed(value: torch.Tensor) -> torch.Tensor:
    """Spreads every bit of an int64 over all, by multiplications that wrap around."""
    for factor in (0x3F58476D1CE4E5B9, 0x14D049BB133111EB):
        value = (value ^ ((value >> 31) & 0x1FFFFFFFF)) * factor
    return value ^ ((value >> 32) & 0xFFFFFFFF)
