# SPDX-License-Identifier: Apache-2.0
"""What the policies written in Python choose, against plain references."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.reference import unmasking
from vllm.v1.diffusion.policies import CanvasView, PositionStats, get_policy

WIDTH = 12


def view(masked: torch.Tensor, **given: Any) -> CanvasView:
    """The canvases of some requests."""
    requests, width = masked.shape
    column = torch.arange(width)
    return CanvasView(
        **{
            "tokens": torch.zeros(requests, width, dtype=torch.int64),
            "masked": masked,
            "step": torch.zeros(requests, dtype=torch.int32),
            "steps": torch.full((requests,), 4, dtype=torch.int32),
            "block_length": torch.full((requests,), width, dtype=torch.int32),
            "unmasked": torch.zeros_like(masked),
            "seed": torch.arange(requests),
            "position": column.expand(requests, width),
        }
        | given
    )


def stats(confidence: torch.Tensor, token: torch.Tensor | None = None) -> PositionStats:
    """Statistics of which only what is given matters."""
    token = torch.ones(confidence.shape, dtype=torch.int64) if token is None else token
    nothing = torch.zeros_like(confidence)
    return PositionStats(token, confidence, nothing, confidence, nothing)


def some_masked(requests: int, generator: torch.Generator) -> torch.Tensor:
    """Random masks, at least one a request."""
    masked = torch.rand(requests, WIDTH, generator=generator) < 0.6
    masked[:, 3] |= ~masked.any(dim=1)
    return masked


def test_hierarchical() -> None:
    generator = torch.Generator().manual_seed(1)
    masked = some_masked(400, generator)
    confidence = torch.rand(masked.shape, generator=generator)
    threshold = torch.rand(400, generator=generator)
    low = torch.rand(400, generator=generator)
    chosen = get_policy("hierarchical").select(
        stats(confidence), view(masked, values={"threshold": threshold, "low_threshold": low})
    )
    assert isinstance(chosen, torch.Tensor)
    several = 0
    for i in range(400):
        open_ = masked[i].tolist()
        want = unmasking.hierarchical(confidence[i].tolist(), open_, float(threshold[i]), float(low[i]))
        assert set((chosen[i] & masked[i]).nonzero()[:, 0].tolist()) == want
        several += (
            len(want & {unmasking.best(run, confidence[i].tolist()) for run in unmasking.runs(open_)}) > 1
        )
    assert several > 50  # Leaders of several runs, which is what the policy is for.


def test_random_unmasks_the_scheduled_number_evenly() -> None:
    policy = get_policy("random")
    masked = torch.ones(3000, 8, dtype=torch.bool)
    masked[:, 0] = False
    choice = policy.select(
        stats(torch.rand(masked.shape)),
        view(masked, steps=torch.full((3000,), 3), step=torch.ones(3000, dtype=torch.int32)),
    )
    assert isinstance(choice, torch.Tensor)
    # 8 positions in 3 steps: 3, 3, 2. Each of the 7 masked ones has 3 chances in 7.
    assert (choice.sum(dim=1) == 3).all() and not choice[:, 0].any()
    share = choice[:, 1:].float().mean(dim=0)
    assert (share - 3 / 7).abs().max() < 0.05
    # Later steps and other seeds draw anew; the same ones draw the same.
    again = policy.select(
        stats(torch.rand(masked.shape)),
        view(masked, steps=torch.full((3000,), 3), step=torch.ones(3000, dtype=torch.int32)),
    )
    later = policy.select(
        stats(torch.rand(masked.shape)),
        view(masked, steps=torch.full((3000,), 3), step=torch.full((3000,), 2, dtype=torch.int32)),
    )
    assert isinstance(again, torch.Tensor) and isinstance(later, torch.Tensor)
    assert torch.equal(choice, again)
    assert (later.sum(dim=1) == 2).all()
    assert (choice[1:] != choice[:-1]).any(dim=1).float().mean() > 0.9


def test_a_schedule_is_kept_whatever_the_scores() -> None:
    from vllm.v1.diffusion.policies import ScheduledPolicy

    class Odd(ScheduledPolicy):
        def score(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
            score = torch.full(canvas.masked.shape, torch.nan)
            score[:, 4:8] = -torch.inf
            score[:, ::2] = torch.inf  # None of them masked.
            return score

    masked = torch.arange(WIDTH)[None] % 2 == 1
    choice = Odd().select(stats(torch.rand(1, WIDTH)), view(masked))
    assert choice[0].nonzero()[:, 0].tolist() == [1, 3, 5]


def test_credit() -> None:
    """The boosted logits of every step, with leaders that change and come back."""
    policy, vocabulary, steps = get_policy("credit"), 7, 11
    generator = torch.Generator().manual_seed(2)
    memory = policy.make_memory(2, WIDTH, torch.device("cpu"))
    references = [unmasking.Credit() for _ in range(2)]
    masked = torch.ones(2, WIDTH, dtype=torch.bool)
    for step in range(steps):
        logits = torch.randn(2, WIDTH, vocabulary, generator=generator) * 2
        if step % 3 == 2:
            masked[:, torch.randperm(WIDTH, generator=generator)[0]] = False
        top1, token = logits.softmax(-1).max(dim=-1)
        nothing = torch.zeros_like(top1)
        canvas = view(masked, step=torch.full((2,), step, dtype=torch.int32), memory=memory)
        boost = policy.boost(PositionStats(token, top1, nothing, top1, nothing), canvas)
        boosted = logits.scatter_add(2, boost.ids, boost.growth)
        for i, reference in enumerate(references):
            want = torch.tensor(reference.boosted(logits[i].tolist(), masked[i].tolist()))
            assert torch.allclose(boosted[i][masked[i]], want[masked[i]], atol=1e-5)
    led = memory["leader"][0, :, :steps]
    assert any(len(set(row.tolist())) < steps for row in led)


def test_credit_forgets_what_float32_cannot_tell() -> None:
    from vllm.v1.diffusion.policies.adaptive.credit import DECAY, HORIZON

    left = sum(DECAY**age for age in range(HORIZON, 10 * HORIZON))
    assert torch.tensor(1.0, dtype=torch.float32) + left == 1.0


def test_edit() -> None:
    """Random blocks run to their end, every decision compared."""
    generator = torch.Generator().manual_seed(3)
    policy, requests = get_policy("edit"), 64
    threshold = torch.rand(requests, generator=generator)
    edit_threshold = torch.rand(requests, generator=generator)
    most = torch.randint(0, 5, (requests,), generator=generator)
    prompt = torch.randint(0, WIDTH, (requests,), generator=generator)
    references = [
        unmasking.Edit(float(threshold[i]), float(edit_threshold[i]), int(most[i])) for i in range(requests)
    ]
    response = torch.arange(WIDTH) >= prompt[:, None]
    masked = response.clone()
    tokens = torch.zeros(requests, WIDTH, dtype=torch.int64)
    memory = policy.make_memory(requests, WIDTH, torch.device("cpu"))
    open_ = torch.ones(requests, dtype=torch.bool)
    rewrites = ended_early = ended_late = 0
    for _ in range(WIDTH + 6):
        confidence = torch.rand(requests, WIDTH, generator=generator)
        proposed = torch.randint(0, 3, (requests, WIDTH), generator=generator)
        canvas = view(
            masked,
            tokens=tokens,
            unmasked=response & ~masked,
            values={
                "threshold": threshold,
                "edit_threshold": edit_threshold,
                "max_post_steps": most.float(),
            },
            memory=memory,
        )
        unmask = policy.select(stats(confidence, proposed), canvas) & masked
        rewrite = policy.rewrite(stats(confidence, proposed), canvas)
        assert rewrite.unfinished is not None
        for i in open_.nonzero()[:, 0].tolist():
            want = references[i].step(
                proposed[i].tolist(), confidence[i].tolist(), tokens[i].tolist(), masked[i].tolist(),
                response[i].tolist(),
            )  # fmt: skip
            assert set(unmask[i].nonzero()[:, 0].tolist()) == want[0]
            assert set(rewrite.positions[i].nonzero()[:, 0].tolist()) == want[1]
            full = not (masked[i] & ~unmask[i]).any()
            assert bool(rewrite.unfinished[i]) | (not full) == want[2]
            rewrites += len(want[1])
            ended_early += not want[2] and references[i].post_steps < int(most[i])
            ended_late += not want[2] and references[i].post_steps == int(most[i])
        write = (unmask | rewrite.positions) & open_[:, None]
        tokens = torch.where(write, proposed, tokens)
        masked = masked & ~(unmask & open_[:, None])
        open_ = open_ & (masked.any(dim=1) | rewrite.unfinished)
    assert not open_.any()
    assert rewrites > 100 and ended_early > 5 and ended_late > 5


def test_multi_block() -> None:
    """Blocks of several lengths in a batch, thresholds at their bounds, and rows that hold no number."""
    generator, count = torch.Generator().manual_seed(5), 600
    blocks = torch.randint(1, 5, (count,), generator=generator)
    length = torch.tensor([1, 2, 3])[torch.randint(3, (count,), generator=generator)]
    masked = torch.rand(count, WIDTH, generator=generator) < torch.rand(count, 1, generator=generator)
    masked &= torch.arange(WIDTH) < (blocks * length)[:, None]
    confidence = torch.rand(masked.shape, generator=generator)
    confidence[torch.rand(masked.shape, generator=generator) < 0.02] = torch.nan
    given = [0.0, 0.25, 1 / 3, 0.5, 2 / 3, 1.0]
    # Some of what is not masked was given by a prompt.
    unmasked = ~masked & (torch.rand(masked.shape, generator=generator) < 0.8)
    values = {
        name: torch.tensor(given)[torch.randint(len(given), (count,), generator=generator)]
        for name in ("threshold", "add_block_threshold", "semi_complete_threshold")
    }
    chosen = get_policy("multi_block").select(
        stats(confidence),
        view(
            masked,
            values=values,
            unmasked=unmasked,
            block_length=blocks * length,
            part_length=length.to(torch.int32),
        ),
    )
    assert isinstance(chosen, torch.Tensor)
    owed_behind = 0
    for i in range(count):
        want: set[int] = set()
        before = 1.0
        for block in range(int(blocks[i])):
            if block and before < values["add_block_threshold"][i]:
                break
            columns = range(block * int(length[i]), (block + 1) * int(length[i]))
            open_ = [c for c in columns if masked[i, c]]
            sure = {c: -1.0 if math.isnan(p := float(confidence[i, c])) else p for c in open_}
            above = {c for c in open_ if sure[c] > values["threshold"][i]}
            if open_ and not above and (not block or before >= values["semi_complete_threshold"][i]):
                above = {min(open_, key=lambda c: (-sure[c], c))}
                owed_behind += block > 0
            want |= above
            written = sum(bool(unmasked[i, c]) for c in columns)
            before = float(torch.tensor(written) / (written + len(open_))) if open_ else 1.0
        assert set(chosen[i].nonzero()[:, 0].tolist()) == want, i
    assert owed_behind > 50
