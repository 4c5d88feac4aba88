# SPDX-License-Identifier: Apache-2.0
"""The four remedies of ``docs/plugins.md``, each in its place.

Rewriting for V1 is what ``test_llada_guidance.py`` and ``test_layer_contrast.py`` do; a model
class of one's own is in ``test_custom_model.py`` and below.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine.cases import of_golden
from tests.engine.conftest import run_elsewhere
from tests.engine.golden import check


def processes(multiprocessing: str, folder: Path, case: dict[str, Any]) -> dict[str, set[str]]:
    """Runs a loop that looks at the live module; where each of its methods was called."""
    ((result, _),) = run_elsewhere(
        [[of_golden(case)]],
        env={"VLLM_ENABLE_V1_MULTIPROCESSING": multiprocessing, "WITNESS_FOLDER": str(folder)},
        generation_loop="tests.generation_loop.loops.WitnessLoop",
    )
    check(result, case)
    where: dict[str, set[str]] = {}
    for mark in folder.iterdir():
        method, process = mark.name.rsplit("-", 1)
        where.setdefault(method, set()).add(process)
    assert set(where) == {"validate_params", "step", "forward"}
    return where


def test_direct_access(tmp_path: Path, golden_cases: list[dict[str, Any]]) -> None:
    where = processes("1", tmp_path, golden_cases[0])
    assert len(set().union(*where.values())) == 3


def test_single_process(tmp_path: Path, golden_cases: list[dict[str, Any]]) -> None:
    where = processes("0", tmp_path, golden_cases[0])
    assert len(set().union(*where.values())) == 1


def test_a_model_brings_its_own_state() -> None:
    from vllm.v1.worker.gpu.model_states import resolve_model_state_cls
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    class State(DefaultModelState):
        pass

    config: Any = SimpleNamespace(generation_loop=None)
    model: Any = SimpleNamespace(get_model_state_cls=lambda: State)
    assert resolve_model_state_cls(config, model) is State


def test_a_loop_that_is_asked_for_is_never_passed_over() -> None:
    from vllm.engine.arg_utils import EngineArgs

    golden = Path(__file__).parent.parent / "golden" / "sdar"
    with pytest.raises(ValueError, match="Unknown generation_loop='my_loop'"):
        EngineArgs(model=str(golden), generation_loop="my_loop").create_engine_config()
