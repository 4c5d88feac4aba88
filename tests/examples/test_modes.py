# SPDX-License-Identifier: Apache-2.0
"""The examples in every mode of the engine; separate processes are the other files' mode."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.engine.requests_ import GOLDEN_SDAR
from tests.examples import test_layer_contrast as contrast
from tests.examples import test_llada_guidance as guidance
from tests.generation_loop.elsewhere import generate

TWO_RANKS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
MODES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "in_process": ({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, {}),
    "async_pipeline": (TWO_RANKS, {"pipeline_parallel_size": 2, "async_scheduling": True}),
    # A cluster of this process alone, which ends with it.
    "ray_tensor_parallel": (
        {"RAY_ADDRESS": "local"} | TWO_RANKS,
        {"distributed_executor_backend": "ray", "tensor_parallel_size": 2},
    ),
}


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


# Every mode once, two in an engine where they go together: an engine takes its time to start. Separate
# processes are every example's mode in its own file; policies under asynchronous scheduling and on two
# ranks are in tests/engine, two ranks without Ray in tests/generation_loop.
MATRIX = [
    ("in_process", run_guidance),
    ("async_pipeline", run_contrast),
    ("ray_tensor_parallel", run_guidance),
]


@pytest.mark.parametrize(("mode", "example"), MATRIX, ids=lambda value: getattr(value, "__name__", value))
def test_ids_are_the_references(mode: str, example: Callable[..., None], installed: Path, qwen3: str) -> None:
    if "ray" in mode and find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    env, settings = MODES[mode]
    example(installed, qwen3, env=env, **settings)


@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_a_canvas_is_refused_in_a_pipeline(family: str) -> None:
    from vllm.engine.arg_utils import EngineArgs

    with pytest.raises(ValueError, match="pipeline_parallel_size > 1 is not supported with diffusion models"):
        EngineArgs(model=str(GOLDEN_SDAR.parent / family), pipeline_parallel_size=2).create_engine_config()
