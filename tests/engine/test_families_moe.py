# SPDX-License-Identifier: Apache-2.0
"""Block-causal families with experts, against an independent reference."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engine import checkpoints
from tests.engine.cases import Case, random_prompt, run
from tests.engine.conftest import GOLDEN, started
from tests.engine.layouts import SDAR_MOE
from tests.reference.moe import Llada2Reference, MoeReference, SdarMoeReference

LENGTHS = (1, 7, 33, 130)
ALGORITHMS: list[dict[str, Any]] = [
    {"algorithm": "low_confidence_static"},
    {"algorithm": "low_confidence_static", "steps": 3},
    {"algorithm": "low_confidence_dynamic", "threshold": 0.3},
    {"algorithm": "low_confidence_dynamic", "threshold": 0.7, "steps": 2},
    {"algorithm": "sequential", "steps": 4},
    {"algorithm": "entropy_bounded", "entropy_bound": 1.5},
]


def check(llm: Any, reference: MoeReference, cases: list[Case]) -> None:
    """The engine, given the cases as one batch, says what the reference says."""
    check_results(run(llm, cases), reference, cases)


def check_results(results: list[dict[str, Any]], reference: MoeReference, cases: list[Case]) -> None:
    for result, case in zip(results, cases, strict=True):
        assert case.block_length is not None
        want = reference.generate(
            list(case.prompt),
            case.max_tokens,
            case.block_length,
            case.steps or case.block_length,
            case.algorithm,
            case.threshold or 0.0,
            case.entropy_bound or 0.0,
        )
        assert result["token_ids"] == want.output_ids, case
        assert result["unmask_steps"] == want.unmask_step, case
        assert result["steps"] == want.denoising_steps, case


def start(folder: Path, **settings: Any) -> Iterator[Any]:
    """An engine that is given nothing of the family."""
    yield from started(model=str(folder), diffusion_config=None, **settings)


@pytest.fixture(scope="module")
def sdar_moe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.sdar_moe(tmp_path_factory.mktemp("sdar_moe"))


@pytest.fixture(scope="module")
def llada2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llada2(tmp_path_factory.mktemp("llada2"))


@pytest.fixture(scope="module")
def sdar_moe(sdar_moe_folder: Path) -> Iterator[Any]:
    yield from start(sdar_moe_folder)


@pytest.fixture(scope="module")
def llada2(llada2_folder: Path) -> Iterator[Any]:
    yield from start(llada2_folder)


@pytest.mark.parametrize("block_length", [4, 8, 16])
def test_sdar_moe_one_at_a_time(sdar_moe: Any, sdar_moe_folder: Path, block_length: int) -> None:
    reference = SdarMoeReference(sdar_moe_folder)
    for i, length in enumerate(LENGTHS):
        for algorithm in (ALGORITHMS[i], ALGORITHMS[(i + 2) % 6]):
            case = Case(random_prompt(length, 21), 21, block_length=block_length, **algorithm)
            check(sdar_moe, reference, [case])


def mixed() -> list[Case]:
    """16 requests of many shapes."""
    rng = random.Random(23)
    return [
        Case(
            random_prompt(LENGTHS[i % 4], 30 + i),
            rng.choice((1, 5, 16, 21, 30)),
            block_length=(4, 8, 16)[i % 3],
            **ALGORITHMS[i % 6],
        )
        for i in range(16)
    ]


def test_sdar_moe_mixed_batch(sdar_moe: Any, sdar_moe_folder: Path) -> None:
    check(sdar_moe, SdarMoeReference(sdar_moe_folder), mixed())


def test_llada2_mixed_batch(llada2: Any, llada2_folder: Path) -> None:
    check(llada2, Llada2Reference(llada2_folder), mixed())


def test_sdar_moe_a_mask_token_in_the_prompt_is_text(sdar_moe: Any, sdar_moe_folder: Path) -> None:
    prompt = list(random_prompt(37, 3))
    prompt[5] = prompt[34] = prompt[-1] = SDAR_MOE["mask_token_id"]
    case = Case(tuple(prompt), 12, "low_confidence_dynamic", 8, threshold=0.6)
    check(sdar_moe, SdarMoeReference(sdar_moe_folder), [case])


def test_llada2_without_ids_in_its_configuration(llada2: Any, llada2_folder: Path) -> None:
    """The published vocabulary; the mask id is the family's.

    The prompt is longer than the configuration's sliding window, which the published
    model does not have.
    """
    reference = Llada2Reference(llada2_folder)
    assert reference.mask_id == 156895
    cases = [
        Case(random_prompt(7, 41), 32, "low_confidence_dynamic", 32, threshold=0.3, steps=8),
        Case(random_prompt(33, 42), 20, "low_confidence_dynamic", 16, threshold=0.2, steps=8),
        Case(random_prompt(130, 43), 16, "low_confidence_static", 8, steps=4),
    ]
    check(llada2, reference, cases)
    assert llada2.get_tokenizer().eos_token_id == 156892


@pytest.mark.parametrize(
    "write",
    [checkpoints.sdar_moe, checkpoints.llada2, partial(checkpoints.dream, weights=GOLDEN / "dream")],
    ids=["sdar_moe", "llada2", "dream"],
)
@pytest.mark.parametrize("with_code", [True, False])
def test_code_in_a_checkpoint_is_neither_run_nor_asked_for(
    write: Any, with_code: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.tokenizers import get_tokenizer
    from vllm.transformers_utils.config import get_config

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    folder = write(tmp_path)
    if not with_code:
        for file in folder.glob("*.py"):
            file.unlink()
    config = get_config(str(folder), trust_remote_code=False)
    assert type(config).__module__.startswith("vllm.transformers_utils.configs.")
    tokenizer = get_tokenizer(str(folder), trust_remote_code=False)
    assert tokenizer.decode(tokenizer.encode("a b\u00e9")) == "a b\u00e9"
    assert config.sliding_window is None


@pytest.mark.parametrize("known", [{"hidden_act": "gelu"}, {"use_bias": True}, {"norm_topk_prob": False}])
def test_llada2_layers_that_no_checkpoint_has_are_refused(known: dict[str, Any]) -> None:
    from vllm.transformers_utils.configs.llada2_moe import LLaDA2MoeConfig

    with pytest.raises(ValueError, match=next(iter(known))):
        LLaDA2MoeConfig(**known)
