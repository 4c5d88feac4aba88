# SPDX-License-Identifier: Apache-2.0
"""Adapters: a request's own changes its output as merged weights would, and no other's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.cases import Case, random_prompt
from tests.engine.conftest import SETTINGS
from tests.engine.published import PUBLISHED
from tests.reference.bidirectional import GuidedReference


def ids_of(family: str, folder: Path, deltas: dict[str, Any], case: Case) -> list[int]:
    """What the reference generates with weights to which the adapter's were added."""
    reference = PUBLISHED[family].merged(folder, deltas)
    assert case.block_length
    if case.own:
        ((_, scale),) = case.own
        reference = GuidedReference(reference, scale, len(case.prompt))
    how = (case.block_length, case.steps or case.block_length, case.algorithm)
    ids: list[int] = reference.generate(list(case.prompt), case.max_tokens, *how).output_ids
    return ids


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("LLaDA", {"tensor_parallel_size": 2}),
        pytest.param("SDAR", {"enable_prefix_caching": True, "block_size": 32}, marks=pytest.mark.every_mode),
        pytest.param("SDAR", {"pipeline_parallel_size": 2}, marks=pytest.mark.every_mode),
        pytest.param("LLaDA", {"pipeline_parallel_size": 2}, marks=pytest.mark.every_mode),
    ],
)
def test_an_adapter_is_its_requests_alone(
    family: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests with either adapter and with none share a batch, a prompt and the cache."""
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    published = PUBLISHED[family]
    folder = published.write(tmp_path / "model")
    deltas = [published.adapter(folder, tmp_path / f"adapter{seed}", seed) for seed in (1, 2)]
    adapters = [LoRARequest(f"own{i}", i, str(tmp_path / f"adapter{i}")) for i in (1, 2)]
    prompts = [random_prompt(70, 9), random_prompt(7, 8)]
    cases = [Case(p, 24, "low_confidence_static", 8, steps=4) for p in prompts for _ in range(3)]
    requests, merged = [None, *adapters] * 2, [{}, *deltas] * 2
    if family == "LLaDA":  # A guided request's rows are computed twice, with its adapter.
        cases += [replace(cases[3], own=(("diffusion_cfg_scale", 1.5),))] * 2
        requests, merged = [*requests, adapters[0], None], [*merged, deltas[0], {}]
    llm: Any = LLM(
        **SETTINGS
        | {"model": str(folder), "diffusion_config": {"block_length": 8}}
        | {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}
        | settings
    )
    try:
        outputs = llm.generate(
            [{"prompt_token_ids": list(case.prompt)} for case in cases],
            [case.sampling_params() for case in cases],
            lora_request=requests,
            use_tqdm=False,
        )
    finally:
        llm.llm_engine.engine_core.shutdown()
    found = [list(output.outputs[0].token_ids) for output in outputs]
    assert found == [ids_of(family, folder, m, c) for m, c in zip(merged, cases, strict=True)]
    assert len({tuple(ids) for ids in found}) == len(found)
