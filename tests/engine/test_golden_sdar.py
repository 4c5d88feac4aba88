# SPDX-License-Identifier: Apache-2.0
"""SDAR's published code gave these ids; the engine must give the same."""

from __future__ import annotations

from typing import Any

from tests.engine.cases import of_golden, run
from tests.engine.golden import check


def test_alone(engine: Any, golden_cases: list[dict[str, Any]]) -> None:
    for case in golden_cases:
        check(run(engine, [of_golden(case)])[0], case)


def test_batched(engine: Any, golden_cases: list[dict[str, Any]]) -> None:
    twice = golden_cases + golden_cases[::-1]
    results = run(engine, [of_golden(case) for case in twice])
    for result, case in zip(results, twice, strict=True):
        check(result, case)
