# SPDX-License-Identifier: Apache-2.0
"""Several open blocks of a block-causal model, in plain PyTorch (Diffulex's ``multi_bd``, as described).

No cache and no batch: every step computes the whole sequence under an explicit mask. Confidences are those
of the plain softmax, and the mask is never chosen. Nothing slides: positions stay where they are, and
``front`` is the first block that has not left.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from tests.reference.sdar import Decoded, SdarReference


@dataclass(frozen=True)
class Way:
    """How a prompt is answered."""

    block_length: int
    threshold: float
    most: int = 4
    """Blocks that are open at a time, at most."""
    add: float = 0.1
    semi_complete: float = 0.9


@dataclass
class OpenDecoded(Decoded):
    """What was generated, and how much each step sent off."""

    emitted: list[int]
    """Tokens of the answer that had left after each step."""
    opened: list[int]
    """Open blocks of each step."""
    steps_per_block: list[int]
    """Steps since the block before it left, of each block."""


def decode(
    model: SdarReference,
    prompt: Sequence[int],
    max_tokens: int,
    way: Way,
    template: Sequence[int] = (),
    stop_ids: Collection[int] = (),
    context: int = 2**62,
) -> OpenDecoded:
    """Whole blocks, cut to the length asked for, and behind the first stop id.

    Args:
        model: The network.
        prompt: Token ids.
        max_tokens: Tokens of the answer.
        way: How.
        template: The answer's tokens that are given, -1 for the others.
        stop_ids: Ids that end the answer with the blocks that leave.
        context: Tokens of prompt and answer, at most.
    """
    length = way.block_length
    blocks = -(-min(len(prompt) + max_tokens, context) // length)
    given = [*prompt, *template]
    given += [-1] * (blocks * length - len(given))
    tokens = [model.mask_id if token < 0 else token for token in given]
    masked = [token < 0 for token in given]
    at, front, step = [-1] * len(tokens), len(prompt) // length, 0
    emitted, opened_in, made, since = [], [], [], 0
    while front < blocks:
        opened = [front]
        while (
            len(opened) < min(way.most, blocks - front)
            and _share(given, masked, opened[-1], length) >= way.add
        ):
            opened.append(opened[-1] + 1)
        end = (opened[-1] + 1) * length
        logits = model.logits(tokens[:end], length).double()
        probability = logits.softmax(-1)
        logits[:, model.mask_id] = -torch.inf
        choice = logits.argmax(-1).tolist()
        sure = [float(probability[i, token]) for i, token in enumerate(choice)]
        chosen = []
        for block in opened:
            open_ = [i for i in range(block * length, (block + 1) * length) if masked[i]]
            above = [i for i in open_ if sure[i] > way.threshold]
            owed = block == front or _share(given, masked, block - 1, length) >= way.semi_complete
            if open_ and not above and owed:
                above = [min(open_, key=lambda i: (-sure[i], i))]
            chosen += above
        for i in chosen:
            tokens[i], masked[i], at[i] = choice[i], False, step
        step, since = step + 1, since + 1
        opened_in.append(len(opened))
        last = min(front + way.most, blocks)
        while front < last and not any(masked[front * length : (front + 1) * length]):
            front += 1
            made.append(since)
            since = 0
        count = max(0, front * length - len(prompt))
        emitted.append(count)
        if set(tokens[len(prompt) : len(prompt) + count]) & set(stop_ids):
            break
    output = tokens[len(prompt) :][:max_tokens]
    for i, token in enumerate(output):
        if token in stop_ids:
            output = output[: i + 1]
            break
    return OpenDecoded(output, step, at[len(prompt) :][: len(output)], emitted, opened_in, made)


def _share(given: list[int], masked: list[bool], block: int, length: int) -> float:
    """Share of what is to be written of a block that is unmasked."""
    written = [masked[i] for i in range(block * length, (block + 1) * length) if given[i] < 0]
    return written.count(False) / len(written) if written else 1.0
