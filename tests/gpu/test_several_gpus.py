# SPDX-License-Identifier: Apache-2.0
"""The published ids again, each model on several GPUs: tensor-parallel ranks, their experts, pipeline stages.

The tiny models have two heads of keys and values (LLaDA four): of four ranks two hold the same.
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
from tests.gpu.engines import GRAPHS, check_together_and_alone, engine

RANKS = pytest.mark.parametrize("ranks", [2, 4])


def spread(gpus: int, **settings: Any) -> dict[str, Any]:
    """Settings of an engine on so many GPUs; skips the test where there are fewer."""
    import torch

    if (found := torch.cuda.device_count()) < gpus:
        pytest.skip(f"needs {gpus} GPUs, found {found}")
    return GRAPHS | (settings or {"tensor_parallel_size": gpus})


@RANKS
def test_sdar(ranks: int, golden_sdar: list[dict[str, Any]]) -> None:
    with engine("sdar", diffusion_config={"block_length": 16}, **spread(ranks)) as llm:
        check_together_and_alone(llm, golden_sdar, sdar)


def test_sdar_in_stages(golden_sdar: list[dict[str, Any]]) -> None:
    settings = spread(2, pipeline_parallel_size=2)
    with engine("sdar", diffusion_config={"block_length": 16}, **settings) as llm:
        check_together_and_alone(llm, golden_sdar, sdar)


@RANKS
def test_llada2(ranks: int) -> None:
    with engine("llada2", **spread(ranks)) as llm:
        check_together_and_alone(llm, llada2.CASES, llada2)


@RANKS
def test_llada2_with_parallel_experts(ranks: int) -> None:
    """Each rank has some of the experts, whole."""
    settings = spread(ranks, tensor_parallel_size=ranks, enable_expert_parallel=True)
    with engine("llada2", **settings) as llm:
        check_together_and_alone(llm, llada2.CASES, llada2)


@RANKS
def test_llada(ranks: int) -> None:
    """Every cache mode."""
    cases = llada.published()
    settings = spread(ranks) | {"max_model_len": 512, "max_num_batched_tokens": 512}
    with engine("llada", diffusion_config={"block_length": 64, "cache": llada.OWN_MODE}, **settings) as llm:
        results = run(llm, [llada.of_golden(case) for case in cases])
    for result, case in zip(results, cases, strict=True):
        assert result["token_ids"] == case["output_ids"], case["name"]


@RANKS
def test_dream(ranks: int, tmp_path: Path) -> None:
    """Every cache mode."""
    model = str(checkpoints.dream(tmp_path / "dream", dream.FOLDER))
    with engine(model, **spread(ranks)) as llm:
        results = run(llm, [dream.of_golden(case) for case in dream.CASES])
    for result, case in zip(results, dream.CASES, strict=True):
        dream.check_golden(result, case)
