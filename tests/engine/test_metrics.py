# SPDX-License-Identifier: Apache-2.0
"""Metrics and per-request statistics."""

from __future__ import annotations

from tests.engine.cases import Case, expected, random_prompt
from tests.engine.conftest import IN_PROCESS, run_elsewhere


def test_steps_and_tokens_are_counted() -> None:
    cases = [
        Case(random_prompt(32, 20), 32, "low_confidence_dynamic", 8, threshold=0.4),
        Case(random_prompt(30, 21), 18, "low_confidence_static", 8, steps=4),
    ]
    # A process has one registry of metrics, which every engine made in it empties.
    ((*_, counted),) = run_elsewhere([cases], env=IN_PROCESS)
    steps = sum(expected(c).denoising_steps for c in cases)
    assert counted["vllm:diffusion_num_denoising_steps"] == steps
    assert counted["vllm:diffusion_num_committed_tokens"] == 32 + 18
    assert counted["vllm:diffusion_num_canvas_positions"] == 8 * steps
