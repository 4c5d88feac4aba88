# SPDX-License-Identifier: Apache-2.0
"""The published ids of every family, on a GPU in float32: eager, and with CUDA graphs.

The cases and what is compared are those of ``tests/engine``. Graphs are captured without
``torch.compile``; with them asynchronous scheduling is on, as it is by default on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine import checkpoints
from tests.engine import test_dream as dream
from tests.engine import test_golden_llada2 as llada2
from tests.engine import test_golden_sdar as sdar
from tests.engine import test_llada as llada
from tests.engine.cases import run
from tests.gpu.engines import EAGER, GRAPHS, check_together_and_alone, engine


@pytest.mark.parametrize(
    "settings",
    [EAGER, GRAPHS, GRAPHS | {"async_scheduling": False}],
    ids=["eager", "graphs", "graphs-sync"],
)
def test_sdar(settings: dict[str, Any], golden_sdar: list[dict[str, Any]]) -> None:
    with engine("sdar", diffusion_config={"block_length": 16}, **settings) as llm:
        check_together_and_alone(llm, golden_sdar, sdar)


@pytest.mark.parametrize("settings", [EAGER, GRAPHS], ids=["eager", "graphs"])
def test_llada2(settings: dict[str, Any]) -> None:
    with engine("llada2", **settings) as llm:
        check_together_and_alone(llm, llada2.CASES, llada2)


def test_llada() -> None:
    """Every cache mode, as the requests ask."""
    cases = llada.published()
    settings = GRAPHS | {"max_model_len": 512, "max_num_batched_tokens": 512}
    with engine("llada", diffusion_config={"block_length": 64, "cache": llada.OWN_MODE}, **settings) as llm:
        results = run(llm, [llada.of_golden(case) for case in cases])
        alone = run(llm, [llada.of_golden(cases[0])])
    for result, case in zip([*results, *alone], [*cases, cases[0]], strict=True):
        assert result["token_ids"] == case["output_ids"], case["name"]


def test_dream(tmp_path: Path) -> None:
    """Shifted logits, every cache mode; the golden weights in the published layout."""
    model = str(checkpoints.dream(tmp_path / "dream", dream.FOLDER))
    with engine(model, **GRAPHS) as llm:
        for result, case in zip(
            run(llm, [dream.of_golden(c) for c in dream.CASES]), dream.CASES, strict=True
        ):
            dream.check_golden(result, case)
        for case in dream.CASES[:3]:
            dream.check_golden(run(llm, [dream.of_golden(case)])[0], case)
