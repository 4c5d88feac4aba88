# SPDX-License-Identifier: Apache-2.0
"""A loop of one's own reaches the front end, the engine core and the worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import run_elsewhere
from tests.engine.requests_ import of_golden
from tests.engine.test_golden_sdar import check


@pytest.mark.parametrize("multiprocessing", ["1", "0"])
def test_every_method_runs_where_it_belongs(
    multiprocessing: str, tmp_path: Path, golden_cases: list[dict[str, Any]]
) -> None:
    case = golden_cases[0]
    ((result, _),) = run_elsewhere(
        [[of_golden(case)]],
        env={
            "VLLM_ENABLE_V1_MULTIPROCESSING": multiprocessing,
            "WITNESS_FOLDER": str(tmp_path),
        },
        generation_loop="tests.generation_loop.loops.WitnessLoop",
    )
    check(result, case)
    processes: dict[str, set[str]] = {}
    for mark in tmp_path.iterdir():
        method, process = mark.name.rsplit("-", 1)
        processes.setdefault(method, set()).add(process)
    assert set(processes) == {"validate_params", "step", "forward"}
    one = set().union(*processes.values())
    assert len(one) == (3 if multiprocessing == "1" else 1)
