# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of windows, and what the scheduler foresees."""

from __future__ import annotations

from vllm.v1.diffusion.core.plan import Outcome, RequestPlan
from vllm.v1.diffusion.modes import BlockGrid, BlockRule
from vllm.v1.diffusion.modes.grid import nothing
from vllm.v1.diffusion.request.decoding import Decoding


def plan(algorithm: str, steps: int = 2, block_length: int = 4) -> RequestPlan:
    decoding = Decoding(algorithm, steps=steps, block_length=block_length, threshold=0.9, trace=False)
    return RequestPlan(decoding, BlockGrid(block_length))


def test_only_whole_known_blocks_stay_computed() -> None:
    grid = BlockGrid(4)
    assert grid.computed(window_end=8, known=5) == 4
    assert grid.computed(window_end=8, known=8) == 8
    assert grid.computed(window_end=7, known=20) == 4
    assert grid.computed(window_end=3, known=3) == 0


def test_blocks_count_from_the_prompt_s_end_or_from_the_beginning() -> None:
    """The prompt's first block is short; the last block ends with the answer, or with a block."""
    rounded, cut = BlockRule(from_prompt=True), BlockRule(from_prompt=True, cut=True)
    for grid in (rounded.grid(4, 6, 16), cut.grid(4, 6, 16)):
        assert [grid.begin(p) for p in range(12)] == [0, 0, 2, 2, 2, 2, 6, 6, 6, 6, 10, 10]
        assert [grid.end(p) for p in range(8)] == [2, 2, 6, 6, 6, 6, 10, 10]
        assert [grid.starts_block(p) for p in (0, 1, 2, 6, 10)] == [True, False, True, True, True]
    assert (rounded.grid(4, 6, 16).end(14), cut.grid(4, 6, 16).end(14)) == (18, 16)
    assert BlockRule(cut=True).grid(4, 6, 15).end(13) == 15


def test_several_blocks_are_open() -> None:
    grid = BlockRule(open_blocks=3, cut=True).grid(4, 6, 30)
    assert [grid.reach(p) for p in (6, 8, 20, 28)] == [16, 20, 30, 30]
    assert BlockRule().grid(4, 6, 30).reach(6) == 8


def test_a_mode_says_what_stays_computed() -> None:
    """By token: a causal pass over known tokens keeps them all; one that denoises keeps whole blocks."""

    def by_token(grid: BlockGrid, window_end: int, known: int) -> int:
        return window_end if window_end <= known else grid.begin(known)

    grid = BlockRule(from_prompt=True, final=by_token).grid(4, 6, 30)
    assert [grid.computed(end, 6) for end in (3, 6, 10)] == [3, 6, 6]
    assert BlockRule(final=nothing).grid(4, 6, 30).computed(8, 8) == 0


def test_a_fixed_schedule_is_foreseen() -> None:
    request = plan("low_confidence_static", steps=2)
    request.push(8, known=6, denoises=True)  # Two masks, two a step.
    assert request.windows[-1].outcome is Outcome.FINISHES
    assert request.next_known(6) == 8
    assert request.grid.end(8) == 12
    request.push(12, known=6, denoises=True)
    assert request.windows[-1].outcome is Outcome.NOTHING  # type: ignore[comparison-overlap]  # pushed since
    # The first window's output comes: the one in flight has committed a block.
    assert request.pop(known=8) == 8
    assert request.next_known(8) == 8


def test_what_the_model_decides_becomes_a_commit() -> None:
    request = plan("low_confidence_dynamic")
    request.push(8, known=4, denoises=True)
    assert request.windows[-1].outcome is Outcome.UNKNOWN
    assert request.next_known(4) == 4
    request.push(8, known=4, denoises=True)
    assert request.pop(known=8) == 8  # It had unmasked.
    request.push(12, known=8, denoises=True)
    assert request.pop(known=8) == 8


def test_a_preempted_request_starts_its_block_again() -> None:
    request = plan("sequential", steps=4)
    for _ in range(3):
        request.push(4, known=0, denoises=True)
    request.forget()
    assert request.next_known(0) == 0
    for _ in range(3):
        assert request.pop(known=0) is None
    for step in range(1, 5):
        request.push(4, known=0, denoises=True)
        unmasks = request.windows[-1].outcome is Outcome.FINISHES
        assert unmasks == (step == 4)
