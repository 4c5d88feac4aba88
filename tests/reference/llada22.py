# SPDX-License-Identifier: Apache-2.0
"""LLaDA2.2 in plain PyTorch and Python: experts pooled by block, and a block that is edited.

One request, no cache, lists of ids. No code is shared with the package under test.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tests.reference.moe import Llada2Reference


@dataclass
class Edited:
    """What the loop generated for one prompt."""

    output_ids: list[int]
    """Generated tokens, cut to the length asked for, or behind the end token."""
    denoising_steps: int = 0
    """Forward passes whose logits were read."""
    commits: int = 0
    """Further passes over a block that its last step had changed."""
    trace: list[tuple[int, list[int]]] = field(default_factory=list)
    """Number of the block, and its ids, after every pass."""


class Llada22Reference(Llada2Reference):
    """A checkpoint with ``expert_capacity``."""

    def route(self, name: str, h: torch.Tensor) -> torch.Tensor:
        """See :meth:`MoeReference.route`: no groups, but one pool of experts for each block."""
        config = self.config
        score = self._linear(name + "gate", h).sigmoid()
        biased = score + self.weights[name + "gate.expert_bias"]
        weight = torch.zeros_like(score)
        for first in range(0, len(h), config["block_size"]):
            scores = biased[first : first + config["block_size"]]
            best = scores.max(dim=0).values.tolist()
            pool = sorted(range(len(best)), key=lambda e: (-best[e], e))[: config["expert_capacity"]]
            for row, own in enumerate(scores.tolist(), start=first):
                chosen = sorted(pool, key=lambda e: (-own[e], e))[: config["num_experts_per_tok"]]
                kept = score[row, chosen]
                weight[row, chosen] = kept / (kept.sum() + 1e-20) * config["routed_scaling_factor"]
        return weight

    def edit(
        self,
        prompt: list[int],
        gen_length: int,
        threshold: float,
        edit_threshold: float,
        max_post_steps: int,
        eos_id: int | None = None,
    ) -> Edited:
        """Generates greedily, block by block."""
        length = self.config["block_size"]
        known, result = list(prompt), Edited([])
        while len(known) < len(prompt) + gen_length:
            start = len(known) // length * length
            block = _Block(self, known[start:], length, threshold, edit_threshold, max_post_steps)
            while not block.done:
                before = block.ids
                block.step(self.logits(known[:start] + before, length)[start:])
                result.denoising_steps += 1
                result.trace.append((start // length, block.ids))
                if block.done and block.ids != before:
                    result.commits += 1
                    result.trace.append((start // length, block.ids))
            known = known[:start] + block.ids
            if eos_id in known[len(prompt) :]:
                break
        output = known[len(prompt) :][:gen_length]
        result.output_ids = output[: output.index(eos_id) + 1] if eos_id in output else output
        return result


class _Block:
    """An open block."""

    def __init__(
        self,
        model: Llada22Reference,
        fixed: list[int],
        length: int,
        threshold: float,
        edit_threshold: float,
        max_post_steps: int,
    ) -> None:
        self.mask = model.mask_id
        self.delete, self.split = (model.config[f"{name}_token_id"] for name in ("delete", "split"))
        self.fixed = len(fixed)
        self.ids = fixed + [self.mask] * (length - len(fixed))
        self.original = [i >= self.fixed for i in range(length)]
        self.threshold, self.edit_threshold = threshold, edit_threshold
        self.most = max_post_steps
        self.steps = self.post_steps = 0
        self.found: set[tuple[int, ...]] = set()
        self.written: dict[int, set[int]] = {}
        self.done = False

    def step(self, logits: torch.Tensor) -> None:
        """What one pass's logits make of the block."""
        ids, places = self.ids, range(self.fixed, len(self.ids))
        probability = logits.double().softmax(-1)
        want = {i: int(logits[i].argmax()) for i in places}
        sure = {i: float(probability[i, want[i]]) for i in places}
        masks = [i for i in places if ids[i] == self.mask]
        first = [i for i in masks if self.original[i]]
        self.steps += 1
        self.post_steps += not first
        final = 0 < self.most <= self.post_steps
        final |= (self.most == 0 and not first) or self.steps > len(ids) + self.most
        if not final:
            for i in first:
                if want[i] == self.mask:
                    want[i] = self._best(logits[i], {self.mask})
                    sure[i] = float(probability[i, want[i]])
        if final or not first:
            fill = set(masks)
        else:
            needed = 1 + len(masks) - len(first)
            fill = {i for i in masks if sure[i] > self.threshold}
            if len(fill) < needed:
                fill = set(sorted(masks, key=lambda i: (-sure[i], i))[:needed])
        if self.most == 0 and first and set(first) <= fill:
            final, fill = True, set(masks)
        edits = {i for i in places if i not in masks and sure[i] > self.edit_threshold and want[i] != ids[i]}
        write = sorted(fill | edits)
        if not write:
            self.done = True
            return
        special = {self.mask, self.delete, self.split}
        if final:
            want |= {i: self._best(logits[i], special) for i in write if want[i] in special}
        elif tuple(ids) in self.found and (changed := [i for i in write if want[i] != ids[i]]):
            least = min(changed, key=lambda i: (sure[i], i))
            banned = set(self.written.get(least, ())) | ({self.mask} if least in first else set())
            want[least] = self._best(logits[least], banned)
        self.found.add(tuple(ids))
        for i in write:
            self.written.setdefault(i, set()).add(want[i])
        self._rebuild({i: want[i] for i in write})
        self.done = final

    def _rebuild(self, written: dict[int, int]) -> None:
        pairs = list(zip(self.ids[: self.fixed], self.original[: self.fixed], strict=True))
        for i in range(self.fixed, len(self.ids)):
            token = written.get(i, self.ids[i])
            if i in written and token == self.delete:
                continue
            if i in written and token == self.split:
                pairs += [(self.mask, False), (self.ids[i], self.original[i])]
            else:
                pairs.append((token, self.original[i]))
        length = len(self.ids)
        pairs = (pairs + [(self.mask, False)] * length)[:length]
        self.ids, self.original = [token for token, _ in pairs], [flag for _, flag in pairs]

    @staticmethod
    def _best(row: torch.Tensor, banned: set[int]) -> int:
        row = row.clone()
        row[sorted(banned)] = -torch.inf
        return int(row.argmax())
