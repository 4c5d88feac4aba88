# SPDX-License-Identifier: Apache-2.0
"""LLaDA-MoE: both spellings, every quirk of the layout, against the plain reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import checkpoints
from tests.engine.cases import Case, forced, random_prompt, run
from tests.engine.conftest import started
from tests.engine.layouts import LLADA_MOE_QUIRKS
from tests.engine.vocabularies import dump
from tests.reference.bidirectional import LladaMoeReference

LENGTHS = (1, 7, 33, 130)
ENDS = [505, 17, 300]
WAYS: list[dict[str, Any]] = [
    {"algorithm": "low_confidence_static"},
    {"algorithm": "low_confidence_static", "steps": 3},
    {"algorithm": "threshold", "threshold": 0.4},
]


def mixed() -> list[Case]:
    """16 requests of many shapes and every cache mode."""
    return [
        Case(
            random_prompt(LENGTHS[i % 4], 80 + i),
            (16, 24, 21, 40)[(i // 2) % 4],
            block_length=(8, 16, 32)[i % 3],
            cache=(None, "prefix", "dual", "none")[(i // 4) % 4],
            **WAYS[(i // 4 + i) % 3],
        )
        for i in range(16)
    ]


def start(folder: Path, config: dict[str, Any] | None = None) -> Iterator[Any]:
    """An engine that is given nothing of the family."""
    yield from started(model=str(folder), diffusion_config=config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every quirk of the layout, and three end tokens."""
    folder = checkpoints.llada_moe(tmp_path_factory.mktemp("llada_moe"), LLADA_MOE_QUIRKS)
    dump(folder / "generation_config.json", {"eos_token_id": ENDS})
    return folder


@pytest.fixture(scope="module")
def quirks(folder: Path) -> Iterator[Any]:
    """An engine in which end tokens end a response."""
    yield from start(folder, {"stop_at_eos": True})


@pytest.fixture(scope="module")
def published_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llada_moe(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def published(published_folder: Path) -> Iterator[Any]:
    yield from start(published_folder)


def check(llm: Any, folder: Path, cases: list[Case]) -> None:
    """The engine says what the reference says, alone and batched."""
    check_results([*run(llm, cases[:1]), *run(llm, cases)], folder, [cases[0], *cases])


def check_results(results: list[dict[str, Any]], folder: Path, cases: list[Case]) -> None:
    reference = LladaMoeReference(folder)
    for result, case in zip(results, cases, strict=True):
        assert case.block_length
        want = reference.generate(
            list(case.prompt),
            case.max_tokens,
            case.block_length,
            case.steps or case.block_length,
            case.algorithm,
            case.threshold,
            case.cache or "none",
        )
        assert result["token_ids"] == want.output_ids, case
        assert result["unmask_steps"] == want.unmask_step, case
        assert result["steps"] == want.denoising_steps, case


def test_every_quirk_of_the_layout(quirks: Any, folder: Path) -> None:
    check(quirks, folder, mixed())


def test_a_mask_token_in_the_prompt_is_text(quirks: Any, folder: Path) -> None:
    prompt = list(random_prompt(37, 3))
    prompt[5] = prompt[-1] = LLADA_MOE_QUIRKS["mask_token_id"]
    cases = [Case(tuple(prompt), 12, "low_confidence_static", 8, 3, cache=cache) for cache in (None, "dual")]
    check(quirks, folder, cases)


def test_every_end_token_ends_a_response_where_one_does(quirks: Any) -> None:
    assert [forced(quirks, end) for end in ENDS] == [[end] for end in ENDS]
    assert [forced(quirks, end, ignore_eos=True) for end in ENDS] == [[end] * 20 for end in ENDS]


def test_the_published_configuration(published: Any, published_folder: Path) -> None:
    """The published vocabulary; the mask id is the family's."""
    cases = [
        Case(random_prompt(33, 91), 12, "low_confidence_static", 8, steps=4),
        Case(random_prompt(7, 92), 16, "threshold", 16, threshold=0.2, cache="dual"),
    ]
    check(published, published_folder, cases)


def test_llada_and_llada_moe_are_told_apart(tmp_path: Path) -> None:
    from vllm.transformers_utils.config import get_config
    from vllm.transformers_utils.configs.llada import LLaDAConfig
    from vllm.transformers_utils.configs.llada_moe import LLaDAMoEConfig

    assert type(get_config(str(checkpoints.llada_moe(tmp_path)), trust_remote_code=False)) is LLaDAMoEConfig
    assert type(LLaDAConfig.from_dict({"model_type": "llada", "n_layers": 2})) is LLaDAConfig


@pytest.mark.parametrize(
    "unknown",
    [
        {"hidden_act": "gelu"},
        {"moe_router_enable_expert_bias": True},
        {"moe_router_score_function": "sigmoid"},
        {"shared_expert_intermediate_size": 64},
        {"tie_word_embeddings": True},
        {"moe_layer_freq": [1, 0]},
    ],
)
def test_layers_that_no_checkpoint_has_are_refused(unknown: dict[str, Any]) -> None:
    from vllm.transformers_utils.configs.llada_moe import LLaDAMoEConfig

    with pytest.raises(ValueError, match=next(iter(unknown))):
        LLaDAMoEConfig(num_hidden_layers=3, **unknown)
