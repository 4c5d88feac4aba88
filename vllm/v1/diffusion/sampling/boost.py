# SPDX-License-Identifier: Apache-2.0
"""What a policy adds to logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Boost:
    """What the logits of some requests' positions grow by.

    Attributes:
        rows: Row of logits of each position, int64 ``[n, W]``; the number of rows for none.
        ids: Token ids, int64 ``[n, W, k]``.
        growth: What their logits grow by, float32 ``[n, W, k]``.
    """

    rows: torch.Tensor
    ids: torch.Tensor
    growth: torch.Tensor

    def add_to(self, logits: torch.Tensor, rows: torch.Tensor, num_rows: int) -> None:
        """Adds it to some rows of logits, in place.

        Args:
            logits: float32 ``[M, V]``, contiguous.
            rows: Which of the step's rows they are, int64 ``[M]``.
            num_rows: The step's rows.
        """
        place = rows.new_full((num_rows + 1,), -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        at = place[self.rows][..., None]
        where = at.clamp(min=0) * logits.shape[1] + self.ids
        growth = torch.where(at >= 0, self.growth, 0.0)
        logits.view(-1).scatter_add_(0, where.flatten(), growth.flatten())
