# SPDX-License-Identifier: Apache-2.0
"""The published ids of the families that ``test_golden.py`` leaves out, on a GPU in float32.

The cases and what is compared are those of ``tests/engine``. Engines have CUDA graphs where the family can.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine import run_self_speculation
from tests.engine import test_a2d as a2d
from tests.engine import test_golden_diffusion_gemma as diffusion_gemma
from tests.engine import test_golden_dreamon as dreamon
from tests.engine import test_golden_llada22 as llada22
from tests.engine import test_golden_nemotron as nemotron
from tests.engine import test_golden_self_speculation as self_speculation
from tests.engine import test_golden_wedlm as wedlm
from tests.engine import test_open_blocks as open_blocks
from tests.engine import test_open_dllm as open_dllm
from tests.engine import test_stable_diffcoder as stable_diffcoder
from tests.engine.cases import run
from tests.engine.golden import generate
from tests.engine.run_renoising import CASES
from tests.gpu.engines import EAGER, GRAPHS, check_together_and_alone, engine
from vllm.v1.diffusion.worker.speculating.verification import Verification

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread() -> None:
    """The references of these tests run on a CPU, with as many threads as there are."""


@pytest.mark.parametrize("family", [stable_diffcoder, open_dllm], ids=["stable-diffcoder", "open-dllm"])
def test_one_case_at_a_time(family: Any) -> None:
    blocks = {"block_length": 16} if family is stable_diffcoder else None
    with engine(str(family.FOLDER), diffusion_config=blocks, **GRAPHS) as llm:
        check_together_and_alone(llm, family.CASES, family)


@pytest.mark.parametrize("file", ["cases.json", "cases_bd3lm.json"])
@pytest.mark.parametrize("folder", ["a2d-qwen3", "a2d-llama"])
def test_a2d(folder: str, file: str) -> None:
    own = {"attention": "block_causal"} if file == "cases_bd3lm.json" else None
    with engine(folder, diffusion_config=own, **GRAPHS) as llm:
        a2d.check(llm, a2d.published(folder, file))


def test_llada22() -> None:
    with engine("llada22", max_num_batched_tokens=64, **GRAPHS) as llm:
        twice = llada22.CASES + llada22.CASES[::-1]
        llada22.check(run(llm, [llada22.of_golden(case) for case in twice]), twice)
        llada22.check(run(llm, [llada22.of_golden(twice[0])]), twice[:1])


def test_nemotron() -> None:
    """Diffusion with and without seeds, causal writing and drafts, in one batch."""
    own = {"diffusion_config": {"block_length": 64}, "max_num_batched_tokens": 160}
    with engine("nemotron_labs_diffusion", **own, **GRAPHS) as llm:
        requests = [(case["prompt_ids"], nemotron.of_golden(kind, case)) for kind, case in nemotron.CASES]
        for completion, (kind, case) in zip(generate(llm, requests), nemotron.CASES, strict=True):
            nemotron.check(completion, kind, case)


def test_wedlm() -> None:
    own = {"diffusion_config": {"block_length": 32}, "max_num_batched_tokens": 96}
    with engine("wedlm", **own, **GRAPHS) as llm:
        requests = [(case["prompt_ids"], wedlm.of_golden(case)) for case in wedlm.CASES]
        for completion, case in zip(generate(llm, requests), wedlm.CASES, strict=True):
            wedlm.check(completion, case)


def test_dreamon() -> None:
    with engine("dreamon", **EAGER) as llm:
        requests = [dreamon.of_golden(case) for case in dreamon.CASES]
        for completion, case in zip(generate(llm, requests), dreamon.CASES, strict=True):
            dreamon.check(completion, case)


def test_diffusion_gemma() -> None:
    """With the recorded draws, in another process."""
    own = {"gpu_memory_utilization": 0.15, "kv_cache_memory_bytes": 2**30}
    numbers = diffusion_gemma.NUMBERS
    ran = diffusion_gemma.run_golden([[numbers[0]], numbers], **own)
    cases = [CASES[0], *CASES]
    for result, case in zip([*ran["results"][0], *ran["results"][1]], cases, strict=True):
        # A preempted request makes its canvas again, the same.
        last = {(step["block"], step["step"]): step for step in result["steps"]}
        diffusion_gemma.check(result | {"steps": list(last.values())}, case)


@pytest.mark.parametrize("name", open_blocks.MODELS)
def test_several_open_blocks(name: str) -> None:
    """The ids of a plain loop, which gives the published ones."""
    own = {"max_model_len": 256, "diffusion_config": {"block_length": 16}, **open_blocks.LOOP}
    with engine(name, **own, **GRAPHS) as llm:
        ways = [*open_blocks.WAYS, *open_blocks.WAYS[:3]]
        results = run(llm, [open_blocks.case_of(*way) for way in ways])
        for result, way in zip(results, ways, strict=True):
            open_blocks.check(result, open_blocks.spoken(name, *way))


@pytest.mark.parametrize("name", self_speculation.MODELS)
def test_self_speculation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the recorded draws."""
    cases = self_speculation.CASES if name == "sdar" else self_speculation.EDITED
    monkeypatch.setattr(Verification, "uniform", run_self_speculation.uniform)
    monkeypatch.setattr(Verification, "draw", run_self_speculation.draw)
    own = {"diffusion_config": {"block_length": 16}, **self_speculation.LOOP}
    with engine(name, **own, **EAGER) as llm:
        results = run(llm, [self_speculation.as_request(case) for case in cases])
        for result, want in zip(results, self_speculation.reported(name, cases), strict=True):
            self_speculation.check(result, want)
