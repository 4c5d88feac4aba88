# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of windows, and what the scheduler foresees."""

from __future__ import annotations

from vllm.v1.diffusion.core.plan import Outcome, RequestPlan, computed_after
from vllm.v1.diffusion.request.decoding import Decoding


def plan(algorithm: str, steps: int = 2, block_length: int = 4) -> RequestPlan:
    return RequestPlan(
        Decoding(algorithm, steps=steps, block_length=block_length, threshold=0.9, trace=False)
    )


def test_only_whole_known_blocks_stay_computed() -> None:
    assert computed_after(window_end=8, known=5, block_length=4) == 4
    assert computed_after(window_end=8, known=8, block_length=4) == 8
    assert computed_after(window_end=7, known=20, block_length=4) == 4
    assert computed_after(window_end=3, known=3, block_length=4) == 0


def test_a_fixed_schedule_is_foreseen() -> None:
    request = plan("low_confidence_static", steps=2)
    request.push(8, known=6, denoises=True)  # Two masks, two a step.
    assert request.windows[-1].outcome is Outcome.FINISHES
    assert request.next_known(6) == 8
    assert request.window_end(8) == 12
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
