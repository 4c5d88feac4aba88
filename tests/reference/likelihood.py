# SPDX-License-Identifier: Apache-2.0
"""Log probabilities of a text's tokens, by one plain forward pass for each step of the estimator.

Nothing is kept between passes. The text is computed with masks at the positions that are open.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def scores(
    logits: Callable[[list[int]], torch.Tensor],
    text: list[int],
    mask_id: int,
    begin: int,
    width: int,
    *,
    origin: int = 0,
    canvas: int | None = None,
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
        canvas: Tokens of a canvas, counted from ``begin``, of which a bidirectional model sees all; the last
            one ends with the text. None: the sequence ends with the block, as a block-causal model sees it.
        text_end: Whether the last block ends with the text.
        at_once: Whether a pass scores what is left of a block; else it scores one token.
    """
    found: list[float] = []
    while (known := begin + len(found)) < len(text):
        block_end = origin + ((known - origin) // width + 1) * width
        if text_end:
            block_end = min(block_end, len(text))
        end = block_end
        if canvas is not None:
            end = min(begin + ((known - begin) // canvas + 1) * canvas, len(text))
        rows = logits(text[:known] + [mask_id] * (end - known)).double().log_softmax(-1)
        until = min(block_end, len(text)) if at_once else known + 1
        found += [float(rows[i, text[i]]) for i in range(known, until)]
    return found


def sampled_scores(
    logits: Callable[[list[int]], torch.Tensor],
    text: list[int],
    mask_id: int,
    begin: int,
    samples: int,
    seed: int,
) -> list[float]:
    """The estimate of ``monte_carlo`` for each token of ``text[begin:]``; they sum up to the text's.

    Args:
        logits: See :func:`scores`; also ``text``, ``mask_id`` and ``begin``.
        text: The text.
        mask_id: Id of the mask token.
        begin: Index of the first token that is scored.
        samples: How often a part is masked.
        seed: Of the draws.
    """
    length = len(text) - begin
    sums = [0.0] * length
    for sample in range(samples):
        draws = np.random.Generator(np.random.PCG64([seed, sample]))
        count = 1 + int(length * float(draws.random()))
        keys = draws.random(length).tolist()
        masked = sorted(range(length), key=lambda i: keys[i])[:count]
        noised = list(text)
        for i in masked:
            noised[begin + i] = mask_id
        rows = logits(noised).double().log_softmax(-1)
        for i in masked:
            sums[i] += float(rows[begin + i, text[begin + i]]) / (count / length)
    return [total / samples for total in sums]
