# SPDX-License-Identifier: Apache-2.0
"""Metrics and per-request statistics."""

from __future__ import annotations

from typing import Any

from tests.engine.requests_ import Case, expected, random_prompt, run


def counters(llm: Any) -> dict[str, float]:
    return {
        m.name.removeprefix("vllm:diffusion_"): m.value
        for m in llm.get_metrics()
        if m.name.startswith("vllm:diffusion_num_")
    }


def test_steps_and_tokens_are_counted(engine: Any) -> None:
    cases = [
        Case(random_prompt(32, 20), 32, "low_confidence_dynamic", 8, threshold=0.4),
        Case(random_prompt(30, 21), 18, "low_confidence_static", 8, steps=4),
    ]
    before = counters(engine)
    run(engine, cases)
    counted = {k: v - before[k] for k, v in counters(engine).items()}
    steps = sum(expected(c).denoising_steps for c in cases)
    assert counted["num_denoising_steps"] == steps
    assert counted["num_committed_tokens"] == 32 + 18
    assert counted["num_canvas_positions"] == 8 * steps
