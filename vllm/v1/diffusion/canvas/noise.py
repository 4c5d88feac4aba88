# SPDX-License-Identifier: Apache-2.0
"""What stands at canvas positions that are not unmasked."""

from __future__ import annotations

import torch


class MaskNoise:
    """The mask token, at every position.

    A mode whose noise is something else derives from it: new canvases begin with what ``renew``
    writes. What a step leaves at positions that stay open is an after-step of the mode's
    ``RowLayout``.
    """

    def __init__(self, mask_token_id: int) -> None:
        """Makes it.

        Args:
            mask_token_id: Id of the mask token.
        """
        self.mask_token_id = mask_token_id

    def renew(
        self, tokens: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor, start: torch.Tensor
    ) -> None:
        """Fills new canvases.

        Args:
            tokens: The canvases, int64 ``[S + 1, W]``, changed.
            rows: Which of them are new, int64 ``[R]``; the last one is scratch.
            slots: The slots that they are for, int64 ``[R]``.
            start: Positions of their first tokens, int64 ``[R]``.
        """
        tokens.index_fill_(0, rows, self.mask_token_id)

    def again(self, tokens: torch.Tensor) -> torch.Tensor | int:
        """What stands where a correction opens a position again that a step has written.

        Args:
            tokens: What the step wrote, int64, of any shape.
        """
        return self.mask_token_id

    def ahead(self, slots: torch.Tensor, positions: torch.Tensor) -> torch.Tensor | int:
        """What stands at positions that no step has worked on.

        Args:
            slots: The slot of each position or row of positions, int64 ``[T]`` or ``[R]``.
            positions: int64 ``[T]`` or ``[R, W]``.

        Returns:
            One token for all, or one per position.
        """
        return self.mask_token_id
