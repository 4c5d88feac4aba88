# SPDX-License-Identifier: Apache-2.0
"""Fast-dLLM v2 against an independent reference, token for token."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engine import checkpoints
from tests.engine.cases import Case, random_prompt, run
from tests.engine.conftest import run_elsewhere, started
from tests.engine.watching import check as check_canvases
from tests.engine.watching import watch
from tests.reference.fast_dllm_v2 import FastDllmV2Reference
from vllm import SamplingParams

LENGTHS = (1, 7, 31, 32, 33, 64, 130)
SUB_BLOCK = 8
CaseOf = partial(Case, algorithm="sub_blocks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.fast_dllm_v2(tmp_path_factory.mktemp("fast_dllm_v2"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[Any]:
    yield from started(model=str(folder), diffusion_config=None)


def check(llm: Any, folder: Path, cases: list[Case]) -> None:
    check_results(run(llm, cases), folder, cases)


def check_results(results: list[dict[str, Any]], folder: Path, cases: list[Case]) -> None:
    reference = FastDllmV2Reference(folder)
    for result, case in zip(results, cases, strict=True):
        assert case.block_length is not None
        want = reference.generate(
            list(case.prompt),
            case.max_tokens,
            case.block_length,
            SUB_BLOCK if case.algorithm == "sub_blocks" else case.block_length,
            case.threshold or 0.0,
            case.stop_token_ids,
        )
        assert result["token_ids"] == want.output_ids, case
        assert result["unmask_steps"] == want.unmask_step, case


def test_one_at_a_time(llm: Any, folder: Path) -> None:
    for i, length in enumerate(LENGTHS):
        threshold = (0.3, 0.5, 0.9, 1.0)[i % 4]
        check(llm, folder, [CaseOf(random_prompt(length, 60), 50, block_length=32, threshold=threshold)])


def test_mixed_batch(llm: Any, folder: Path) -> None:
    rng = random.Random(61)
    cases = [
        CaseOf(
            random_prompt(LENGTHS[i % 7], 62 + i),
            rng.choice((1, 2, 31, 32, 33, 70)),
            block_length=(32, 16, 8, 32)[i % 4],
            threshold=(0.2, 0.4, 0.95)[i % 3],
        )
        for i in range(16)
    ]
    check(llm, folder, cases)


def test_a_mask_token_in_the_prompt_is_text(llm: Any, folder: Path) -> None:
    """In a whole block of the prompt, in the open one, and as its last token, which predicts the next."""
    reference = FastDllmV2Reference(folder)
    for length in (7, 37, 64):
        prompt = list(random_prompt(length, 85))
        prompt[5] = prompt[length // 2] = prompt[-1] = reference.mask_id
        check(llm, folder, [CaseOf(tuple(prompt), 40, block_length=32, threshold=0.4)])
    text = "ab<|mask|>c<|mask|>"
    prompt = [*b"ab", reference.mask_id, ord("c"), reference.mask_id]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    output = llm.generate(text, params, use_tqdm=False)[0]
    assert list(output.prompt_token_ids) == prompt
    want = reference.generate(prompt, 40, 32, SUB_BLOCK, 0.9).output_ids
    assert list(output.outputs[0].token_ids) == want


def test_without_sub_blocks(llm: Any, folder: Path) -> None:
    """``threshold`` takes the block as a whole: the published small_block_size=32."""
    check(llm, folder, [Case(random_prompt(40, 80), 60, "threshold", 32, threshold=0.4)])


@pytest.mark.parametrize("algorithm", ["entropy", "maskgit_plus", "topk_margin", "origin"])
def test_a_first_token_is_unmasked_whatever_the_algorithm(llm: Any, folder: Path, algorithm: str) -> None:
    """Dream's timetables unmask nothing in some steps; a block's first token waits for none of them."""
    cases = [Case(random_prompt(64, 86), 20, algorithm, 8, steps=16)]
    cases += [Case(random_prompt(9, 81), 6, algorithm, 1, steps=3)]
    longer, single = (result["token_ids"] for result in run(llm, cases))
    reference = FastDllmV2Reference(folder)
    assert reference.mask_id not in longer
    assert longer[0] == reference.generate(list(cases[0].prompt), 1, 8, SUB_BLOCK, 0.9).output_ids[0]
    assert single == reference.generate(list(cases[1].prompt), 6, 1, SUB_BLOCK, 0.9).output_ids


def test_a_template_s_tokens_are_no_step_s(llm: Any, folder: Path) -> None:
    """Also where one of them is the first of a block, of a whole block and of the last one."""
    template = (-1, *range(40, 57), -1, -1, *range(60, 75), -1)
    result = run(llm, [Case(random_prompt(31, 87), 36, "threshold", 8, threshold=0.5, template=template)])[0]
    given = [token >= 0 for token in template]
    assert [step < 0 for step in result["unmask_steps"]] == given
    assert [t for t, held in zip(result["token_ids"], given, strict=True) if held] == [
        token for token in template if token >= 0
    ]


def test_blocks_of_one_token_are_autoregressive(llm: Any, folder: Path) -> None:
    check(llm, folder, [CaseOf(random_prompt(9, 81), 6, block_length=1, threshold=0.5)])


@pytest.mark.parametrize("position", [0, 1, 20, 32])
def test_stop_token(llm: Any, folder: Path, position: int) -> None:
    """At an autoregressive first token, and within blocks."""
    free = CaseOf(random_prompt(64, 82), 40, block_length=32, threshold=0.4)
    stop = run(llm, [free])[0]["token_ids"][position]
    check(llm, folder, [CaseOf(free.prompt, 40, block_length=32, threshold=0.4, stop_token_ids=(stop,))])


def test_defaults_and_a_cached_prefix(llm: Any, folder: Path) -> None:
    prompt = list(random_prompt(300, 83))
    want = FastDllmV2Reference(folder).generate(prompt, 40, 32, SUB_BLOCK, 0.9).output_ids
    params = SamplingParams(temperature=0, max_tokens=40, detokenize=False, ignore_eos=True)
    for cached in (False, True):
        output = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0]
        assert list(output.outputs[0].token_ids) == want
        assert bool(output.num_cached_tokens) is cached


def test_configuration(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.tokenizers import get_tokenizer
    from vllm.transformers_utils.config import get_config

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    assert get_config(str(folder), trust_remote_code=False).block_size == 32
    assert get_tokenizer(str(folder), trust_remote_code=False).decode([72, 105])


def test_small_cache_and_small_chunks(folder: Path) -> None:
    """Requests are preempted and resumed, prompts come in chunks of 64 tokens."""
    cases = [
        CaseOf(random_prompt(63 + i, 84), 90, block_length=(16, 32)[i % 2], threshold=0.4) for i in range(6)
    ]
    (results,) = run_elsewhere(
        [cases],
        env={"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        model=str(folder),
        diffusion_config=None,
        max_model_len=256,
        max_num_batched_tokens=64,
        block_size=32,
        num_gpu_blocks_override=14,
        enable_prefix_caching=False,
    )
    reference = FastDllmV2Reference(folder)
    for result, case in zip(results[:-1], cases, strict=True):
        assert case.block_length is not None
        want = reference.generate(list(case.prompt), 90, case.block_length, SUB_BLOCK, 0.4)
        assert result["token_ids"] == want.output_ids
    assert results[-1]["vllm:num_preemptions"] > 0


def test_open_blocks_are_watched(llm: Any) -> None:
    """The pass that makes a block's first token is a step with a canvas too."""
    case = CaseOf(random_prompt(40, 77), 50, block_length=16, threshold=0.9)
    seen = watch(llm, list(case.prompt), case.sampling_params())
    check_canvases(seen, anchored=True)
