# SPDX-License-Identifier: Apache-2.0
"""Log probabilities of a text's tokens, by one plain forward pass for each step of the estimator.

Nothing is kept between passes. The text is computed with masks at the positions that are open.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def scores(
    logits: Callable[[list[int]], torch.Tensor],
    text: list[int],
    mask_id: int,
    begin: int,
    width: int,
    *,
    origin: int = 0,
    canvas_end: int | None = None,
    text_end: bool = False,
    at_once: bool = False,
) -> list[float]:
    """The log probability of each token of ``text[begin:]``.

    Args:
        logits: From a sequence to logits ``[len, vocab]``, of which row i predicts token i.
        text: The text.
        mask_id: Id of the mask token.
        begin: Index of the first token that is scored.
        width: Tokens of a block.
        origin: A position at which a block begins.
        canvas_end: Where the sequence ends, of which a bidirectional model sees all; None: it ends with the
            block, which is all that a block-causal model sees.
        text_end: Whether the last block ends with the text.
        at_once: Whether a pass scores what is left of a block; else it scores one token.
    """
    found: list[float] = []
    while (known := begin + len(found)) < len(text):
        block_end = origin + ((known - origin) // width + 1) * width
        if text_end:
            block_end = min(block_end, len(text))
        end = block_end if canvas_end is None else canvas_end
        rows = logits(text[:known] + [mask_id] * (end - known)).double().log_softmax(-1)
        until = min(block_end, len(text)) if at_once else known + 1
        found += [float(rows[i, text[i]]) for i in range(known, until)]
    return found
