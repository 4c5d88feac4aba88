# SPDX-License-Identifier: Apache-2.0
"""The published ids again, with each model on two GPUs: tensor-parallel ranks, and pipeline stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine import checkpoints
from tests.engine import test_dream as dream
from tests.engine import test_golden_llada2 as llada2
from tests.engine import test_golden_sdar as sdar
from tests.engine import test_llada as llada
from tests.engine.requests_ import run
from tests.gpu.engines import GRAPHS, check_together_and_alone, engine

RANKS: dict[str, Any] = GRAPHS | {"tensor_parallel_size": 2}


@pytest.fixture(scope="module", autouse=True)
def two_gpus() -> None:
    import torch

    if (found := torch.cuda.device_count()) < 2:
        pytest.skip(f"needs two GPUs, found {found}")


@pytest.mark.parametrize("settings", [RANKS, GRAPHS | {"pipeline_parallel_size": 2}], ids=["ranks", "stages"])
def test_sdar(settings: dict[str, Any], golden_sdar: list[dict[str, Any]]) -> None:
    with engine("sdar", diffusion_config={"block_length": 16}, **settings) as llm:
        check_together_and_alone(llm, golden_sdar, sdar)


def test_llada2() -> None:
    with engine("llada2", **RANKS) as llm:
        check_together_and_alone(llm, llada2.CASES, llada2)


def test_llada() -> None:
    """Every cache mode."""
    cases = llada.published()
    settings = RANKS | {"max_model_len": 512, "max_num_batched_tokens": 512}
    with engine("llada", diffusion_config={"block_length": 64, "cache": llada.OWN_MODE}, **settings) as llm:
        results = run(llm, [llada.of_golden(case) for case in cases])
    for result, case in zip(results, cases, strict=True):
        assert result["token_ids"] == case["output_ids"], case["name"]


def test_dream(tmp_path: Path) -> None:
    """Every cache mode."""
    model = str(checkpoints.dream(tmp_path / "dream", dream.FOLDER))
    with engine(model, **RANKS) as llm:
        results = run(llm, [dream.of_golden(case) for case in dream.CASES])
    for result, case in zip(results, dream.CASES, strict=True):
        dream.check_golden(result, case)
