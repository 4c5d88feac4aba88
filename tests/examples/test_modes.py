# SPDX-License-Identifier: Apache-2.0
"""The examples in every mode of the engine; separate processes are the other files' mode."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.engine.cases import GOLDEN_SDAR
from tests.examples import test_layer_contrast as contrast
from tests.examples import test_llada_guidance as guidance
from tests.examples import test_unmasking_policy as policy
from tests.generation_loop.elsewhere import generate
from tests.ray_nodes import ACROSS, two_nodes

TWO_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
MODES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "in_process": ({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, {}),
    "async_in_process": ({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, {"async_scheduling": True}),
    "async": ({}, {"async_scheduling": True}),
    "tensor_parallel": (TWO_RANKS, {"tensor_parallel_size": 2}),
    "async_tensor_parallel": (TWO_RANKS, {"tensor_parallel_size": 2, "async_scheduling": True}),
    "pipeline": (TWO_RANKS, {"pipeline_parallel_size": 2}),
    "async_pipeline": (TWO_RANKS, {"pipeline_parallel_size": 2, "async_scheduling": True}),
    # A cluster of this process alone, which ends with it.
    "ray_tensor_parallel": (
        {"RAY_ADDRESS": "local"} | TWO_RANKS,
        {"distributed_executor_backend": "ray", "tensor_parallel_size": 2},
    ),
    "ray_pipeline": (
        {"RAY_ADDRESS": "local"} | TWO_RANKS,
        {"distributed_executor_backend": "ray", "pipeline_parallel_size": 2},
    ),
    "ray_two_nodes": ({}, ACROSS),
}


def run_policy(installed: Path, qwen3: str, **how: Any) -> None:
    """The policy, against the reference."""
    cases = policy.requests("calm")
    (results,) = generate([cases], installed=installed, **policy.SETTINGS, **how)
    assert [r["token_ids"] for r in results] == [policy.expected(case) for case in cases]


def run_guidance(installed: Path, qwen3: str, **how: Any) -> None:
    """Guidance, against the reference."""
    cases = guidance.batch()
    (results,) = generate([cases], installed=installed, **guidance.SETTINGS, **how)
    assert [r["token_ids"] for r in results] == [guidance.expected(case) for case in cases]


def run_contrast(installed: Path, qwen3: str, **how: Any) -> None:
    """Contrast, against the reference."""
    cases = contrast.batch()
    (results,) = generate([cases], installed=installed, **contrast.settings(qwen3), **how)
    assert [r["token_ids"] for r in results] == [contrast.expected(qwen3, case) for case in cases]


# Guidance calls a bidirectional model itself: asynchronous scheduling is refused, and a pipeline.
WORKS: dict[Callable[..., None], list[str]] = {
    run_policy: list(MODES),
    run_guidance: [mode for mode in MODES if "pipeline" not in mode and "async" not in mode],
    run_contrast: list(MODES),
}
# An engine takes its time to start: a run of the whole suite makes these, ``-m every_mode`` the others.
ALWAYS = [(run_guidance, "in_process"), (run_guidance, "ray_tensor_parallel")]
PAIRS = [
    pytest.param(
        *pair, id=f"{pair[0].__name__[4:]}-{pair[1]}", marks=[] if pair in ALWAYS else pytest.mark.every_mode
    )
    for pair in ((example, mode) for example, modes in WORKS.items() for mode in modes)
]


@pytest.mark.parametrize(("example", "mode"), PAIRS)
def test_ids_are_the_references(
    example: Callable[..., None], mode: str, installed: Path, qwen3: str, tmp_path: Path
) -> None:
    if "ray" in mode and find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    env, settings = MODES[mode]
    if mode == "ray_two_nodes":
        with two_nodes(tmp_path, {"PYTHONPATH": str(installed)}) as cluster:
            example(installed, qwen3, env=cluster.environment, **settings)
    else:
        example(installed, qwen3, env=env, **settings)


def test_guidance_is_refused_in_a_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples" / "llada_guidance")
    with pytest.raises(ValueError, match="pipeline_parallel_size=2 is not supported with guidance"):
        EngineArgs(
            model=str(GOLDEN_SDAR.parent / "llada"),
            generation_loop="llada_guidance.GuidedLoop",
            pipeline_parallel_size=2,
        ).create_engine_config()
