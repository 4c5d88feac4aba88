# SPDX-License-Identifier: Apache-2.0
"""Families that other tests run in one process: a mixed batch on two ranks, and in two stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engine import checkpoints, test_dream, test_families_moe, test_llada_moe
from tests.engine.conftest import GOLDEN, run_elsewhere
from tests.engine.layouts import LLADA_MOE_QUIRKS
from tests.reference.moe import SdarMoeReference


@pytest.mark.every_mode
@pytest.mark.parametrize(
    ("spread", "bound"),
    [({"tensor_parallel_size": 2}, "nobind"), ({"pipeline_parallel_size": 2}, "0|1")],
    ids=["ranks", "stages"],
)
@pytest.mark.parametrize("family", ["Dream", "SDAR-MoE", "LLaDA-MoE"])
def test_a_mixed_batch(family: str, spread: dict[str, Any], bound: str, tmp_path: Path) -> None:
    folder, cases = tmp_path / "model", test_families_moe.mixed()
    check: Callable[[list[Any], list[Any]], None]
    if family == "Dream":
        cases, check = test_dream.mixed(), test_dream.check
        checkpoints.dream(folder, GOLDEN / "dream")
    elif family == "SDAR-MoE":
        checkpoints.sdar_moe(folder)
        check = partial(_check_sdar_moe, folder)
    else:
        cases = test_llada_moe.mixed()
        checkpoints.llada_moe(folder, LLADA_MOE_QUIRKS)
        check = partial(_check_llada_moe, folder)
    alone, batch = run_elsewhere(
        [cases[1:2], cases],
        env={"VLLM_CPU_OMP_THREADS_BIND": bound},
        model=str(folder),
        diffusion_config=None,
        **spread,
    )
    check([alone[0], *batch[:-1]], [cases[1], *cases])


def _check_sdar_moe(folder: Path, results: list[Any], cases: list[Any]) -> None:
    test_families_moe.check_results(results, SdarMoeReference(folder), cases)


def _check_llada_moe(folder: Path, results: list[Any], cases: list[Any]) -> None:
    test_llada_moe.check_results(results, folder, cases)
