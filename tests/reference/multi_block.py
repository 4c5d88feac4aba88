# SPDX-License-Identifier: Apache-2.0
"""Several blocks of an answer at once, in plain Python: d3LLM on a bidirectional model, without a cache."""

from __future__ import annotations

from dataclasses import dataclass

from tests.reference.bidirectional import BidirectionalReference
from tests.reference.sdar import Decoded


@dataclass(frozen=True)
class D3llm:
    """What a request asks for.

    Attributes:
        length: Tokens of the answer.
        block: Tokens of a block of it.
        entropy: Entropy in nats up to which a position is unmasked.
        add: Share of the last open block that opens the next one.
        end: The token behind which all becomes that token; None for none.
    """

    length: int
    block: int
    entropy: float
    add: float
    end: int | None = None

    def decode(
        self, model: BidirectionalReference, prompt: list[int], template: list[int] | None = None
    ) -> Decoded:
        """Decodes greedily; ``template`` holds the answer's tokens that are given, -1 for the others."""
        begin, total = len(prompt), len(prompt) + self.length
        given = template or [-1] * self.length
        ids = prompt + [model.mask_id if token < 0 else token for token in given]
        open_ = {begin + i for i, token in enumerate(given) if token < 0}
        blocks = [range(i, min(i + self.block, total)) for i in range(begin, total, self.block)]
        unmasked = [-1] * total
        opened, step = 1, 0
        while open_:
            masked = set(open_)  # As the step before left it: what is filled now is decided once more.
            ended = self._first_end(ids, begin, open_)
            if ended is not None:
                ids[ended + 1 :] = [self.end] * (total - ended - 1)  # type: ignore[list-item]
                for i in sorted(open_):
                    if i > ended:
                        open_.discard(i)
                        unmasked[i] = step - 1
                if not open_:
                    break
            last = blocks[opened - 1]
            if opened < len(blocks) and sum(i not in open_ for i in last) / len(last) >= self.add:
                opened += 1
            first = next(n for n, block in enumerate(blocks) if open_ & set(block))
            opened = max(opened, first + 1)
            reach = total if ended is not None else blocks[opened - 1].stop
            pool = sorted(i for i in masked if i < reach)
            rows = model.forward(ids, range(total), []).double()
            if model.shifted:
                rows = rows.roll(1, 0)
            logs = rows.log_softmax(-1)
            entropy = (-(logs.exp() * logs).sum(-1)).tolist()
            rows[:, model.mask_id] = -float("inf")
            token = rows.argmax(-1).tolist()
            chosen = {i for i in pool if entropy[i] <= self.entropy}
            chosen.add(min(pool, key=entropy.__getitem__))
            owed = [i for i in pool if i in blocks[first]]
            if not chosen & set(owed):
                chosen.add(min(owed, key=entropy.__getitem__))
            for i in chosen:
                ids[i] = token[i]
                unmasked[i] = step if i in open_ else unmasked[i]
            open_ -= chosen
            step += 1
        return Decoded(ids[begin:], step, unmasked[begin:])

    def _first_end(self, ids: list[int], begin: int, open_: set[int]) -> int | None:
        return next((i for i in range(begin, len(ids)) if ids[i] == self.end and i not in open_), None)
