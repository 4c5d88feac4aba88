# SPDX-License-Identifier: Apache-2.0
"""``multi_block``: several blocks of a block-causal model are open at a time (Diffulex's ``multi_bd``)."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from typing_extensions import override

from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import THRESHOLD, Parameter, Share

MOST_OPEN_BLOCKS = 4
"""Most blocks that a request may have open: as wide is a canvas of the mode ``multi_block``."""

OPEN_BLOCKS = "open_blocks"
"""The number that says how many blocks a request opens at most."""


class MultiBlock(UnmaskingPolicy):
    """Decides in several open blocks of a block-causal model (Diffulex's ``multi_bd``).

    The first unfinished block is open. A further one is open if ``add_block_threshold`` of the one before
    it is unmasked. In each open block, a step unmasks all positions above the threshold. Where there is none,
    it unmasks the most confident position of the first block, and of a block behind one, of which
    ``semi_complete_threshold`` is unmasked. Shares are of what a block has to write. One open block is
    denoised as by ``low_confidence_dynamic``.
    """

    opens_blocks = True
    numbers: ClassVar = {
        "threshold": THRESHOLD,
        OPEN_BLOCKS: Parameter(
            "Most blocks that are open at a time.",
            Annotated[int, Field(ge=1, le=MOST_OPEN_BLOCKS)],
            default=MOST_OPEN_BLOCKS,
        ),
        # Published is 0.1. With that, models that were not trained for it lose most of their accuracy.
        "add_block_threshold": Parameter(
            "Share of an open block that must be unmasked for the next one to open; with 1 blocks are "
            "denoised one by one.",
            Share,
            default=0.8,
        ),
        "semi_complete_threshold": Parameter(
            "Share of an open block that must be unmasked for a step to owe the next one a token.",
            Share,
            default=0.9,
        ),
    }

    @override
    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        masked, values = canvas.masked, canvas.values
        length = canvas.part_length.to(torch.int64)[:, None]
        columns = torch.arange(masked.shape[1], device=masked.device)
        number = torch.arange(MOST_OPEN_BLOCKS, device=masked.device)
        inside = (columns // length)[:, None] == number[:, None]
        left = (masked[:, None] & inside).sum(dim=2)
        # What a prompt or a template gives is no progress.
        written = (canvas.unmasked[:, None] & inside).sum(dim=2)
        share = torch.where(left > 0, written / (written + left), 1.0)
        # Of each block but the first: what is said of the block before it.
        before = torch.nn.functional.pad(share, (1, 0), value=1.0)[:, :-1]
        opened = (before >= values["add_block_threshold"][:, None]).cumprod(dim=1).bool()
        owed = opened & (before >= values["semi_complete_threshold"][:, None])
        candidates = masked[:, None] & inside & opened[..., None]
        confidence = stats.confidence.nan_to_num(nan=-1.0)[:, None]
        above = candidates & (confidence > values["threshold"][:, None, None])
        owed &= (left > 0) & ~above.any(dim=2)
        best = confidence.masked_fill(~candidates, -2.0).argmax(dim=2, keepdim=True)
        chosen = above | ((columns == best) & owed[..., None])
        return chosen.any(dim=1)
