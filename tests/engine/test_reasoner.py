# SPDX-License-Identifier: Apache-2.0
"""The checkpoint that judges ways of decoding: held-out problems through the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.tinydlm.reasoning import Problem, held_out
from tests.engine.conftest import IN_PROCESS

CHECKPOINT = Path(__file__).parents[2] / "models" / "reasoner"
TASKS = ("story", "record", "program", "sudoku")
"""Those that the checkpoint has learnt; ``naming`` is not one of them (``models/README.md``)."""


@pytest.fixture(scope="module")
def reasoner() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in IN_PROCESS.items():
            patch.setenv(name, value)
        from vllm import LLM

        llm = LLM(model=str(CHECKPOINT), enforce_eager=True, max_model_len=256, max_num_seqs=16)
        yield llm
        llm.llm_engine.engine_core.shutdown()


def test_held_out_problems_careful_and_hasty(reasoner: Any) -> None:
    """One token a step solves them; one step a block does not, since its tokens contradict each other."""
    from vllm import DiffusionParams  # type: ignore[attr-defined]  # lazy

    problems: list[Problem] = [problem for task in TASKS for problem in held_out(task, 4, 31)]
    right = {}
    for steps in (32, 1):
        how = DiffusionParams(algorithm="low_confidence_static", steps=steps)
        params = how.sampling_params(temperature=0.0, max_tokens=128)
        outputs = reasoner.generate([p.prompt for p in problems], params, use_tqdm=False)
        answers = [output.outputs[0].text for output in outputs]
        right[steps] = {
            task: sum(p.is_right(a) for p, a in zip(problems, answers, strict=True) if p.task == task)
            for task in TASKS
        }
    assert sum(right[32].values()) >= 13, right
    assert right[1]["story"] + right[1]["record"] <= 4, right
