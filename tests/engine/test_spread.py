# SPDX-License-Identifier: Apache-2.0
"""Families that other tests run in one process: a mixed batch on two ranks, and in two stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engine import (
    checkpoints,
    test_dream,
    test_families_moe,
    test_golden_dreamon,
    test_golden_llada2,
    test_golden_wedlm,
    test_llada_moe,
)
from tests.engine.cases import run
from tests.engine.conftest import GOLDEN, SETTINGS, run_elsewhere
from tests.engine.golden import cases_of, generate
from tests.engine.layouts import LLADA_MOE_QUIRKS
from tests.reference.moe import SdarMoeReference
from vllm import DiffusionParams  # type: ignore[attr-defined]  # lazy


@pytest.mark.every_mode
@pytest.mark.parametrize(
    ("spread", "bound"),
    [
        ({"tensor_parallel_size": 2}, "nobind"),
        ({"tensor_parallel_size": 2, "enable_expert_parallel": True}, "nobind"),
        ({"pipeline_parallel_size": 2}, "0|1"),
    ],
    ids=["ranks", "experts", "stages"],
)
@pytest.mark.parametrize("family", ["Dream", "SDAR-MoE", "LLaDA-MoE"])
def test_a_mixed_batch(family: str, spread: dict[str, Any], bound: str, tmp_path: Path) -> None:
    if family == "Dream" and "enable_expert_parallel" in spread:
        pytest.skip("no experts")
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


@pytest.fixture
def on_two_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Starts an engine of two tensor-parallel ranks."""
    from vllm import LLM

    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    started: list[Any] = []

    def start(folder: str, **own: Any) -> Any:
        settings = SETTINGS | {"model": str(GOLDEN / folder), "diffusion_config": None}
        started.append(LLM(**settings | own, tensor_parallel_size=2))
        return started[-1]

    yield start
    for llm in started:
        llm.llm_engine.engine_core.shutdown()


@pytest.mark.every_mode
def test_llada2_with_parallel_experts(on_two_ranks: Callable[..., Any]) -> None:
    cases = test_golden_llada2.CASES + test_golden_llada2.EDITED
    results = run(
        on_two_ranks("llada2", enable_expert_parallel=True),
        [test_golden_llada2.of_golden(case) for case in cases],
    )
    for result, case in zip(results, cases, strict=True):
        test_golden_llada2.check(result, case)


@pytest.mark.every_mode
def test_wedlm_on_two_ranks(on_two_ranks: Callable[..., Any]) -> None:
    llm = on_two_ranks("wedlm", diffusion_config={"block_length": 32})
    cases = test_golden_wedlm.CASES
    requests = [(case["prompt_ids"], test_golden_wedlm.of_golden(case)) for case in cases]
    for completion, case in zip(generate(llm, requests), cases, strict=True):
        test_golden_wedlm.check(completion, case)


@pytest.mark.every_mode
def test_dream_on_on_two_ranks(on_two_ranks: Callable[..., Any]) -> None:
    cases = test_golden_dreamon.CASES
    requests = [test_golden_dreamon.of_golden(case) for case in cases]
    completions = generate(on_two_ranks("dreamon"), requests)
    for completion, case in zip(completions, cases, strict=True):
        test_golden_dreamon.check(completion, case)


@pytest.mark.every_mode
def test_diffusion_gemma_on_two_ranks(on_two_ranks: Callable[..., Any]) -> None:
    """The cases in which nothing is drawn but the initial canvases, which a request can give."""
    llm = on_two_ranks("diffusion_gemma", diffusion_config={"block_length": 32}, max_model_len=256)
    cases = cases_of(GOLDEN / "diffusion_gemma")
    cases = [case for case in cases if case["sampler"] == "top_k 1"]
    assert cases
    for case in cases:
        canvas = [token for block in case["blocks"] for token in block["init_canvas"]]
        given = DiffusionParams(
            seed_canvas=canvas,
            block_length=case["params"]["canvas_length"],
            steps=case["params"]["max_denoising_steps"],
            entropy_bound=case["params"]["entropy_bound"],
        )
        how = given.sampling_params(temperature=1.0, top_k=1, detokenize=False)
        (output,) = llm.generate({"prompt_token_ids": case["prompt_ids"]}, how, use_tqdm=False)
        assert list(output.outputs[0].token_ids) == case["output_ids"], case["name"]
        assert output.outputs[0].diffusion.steps_per_block == [block["steps"] for block in case["blocks"]]


def _check_sdar_moe(folder: Path, results: list[Any], cases: list[Any]) -> None:
    test_families_moe.check_results(results, SdarMoeReference(folder), cases)


def _check_llada_moe(folder: Path, results: list[Any], cases: list[Any]) -> None:
    test_llada_moe.check_results(results, folder, cases)
