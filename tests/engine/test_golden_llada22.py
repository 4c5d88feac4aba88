# SPDX-License-Identifier: Apache-2.0
"""LLaDA2.2: SGLang's decoder gave these ids; the engine must give the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typing_extensions import override

from tests.engine.cases import Case, random_prompt, run
from tests.engine.conftest import GOLDEN, started
from tests.engine.golden import altered_configuration, cases_of
from tests.reference.llada22 import Edited, Llada22Reference

FOLDER = GOLDEN / "llada22"
CASES = cases_of(FOLDER)
REFERENCE = Llada22Reference(FOLDER)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llada22() -> Iterator[Any]:
    """An engine of the golden checkpoint with the family's defaults."""
    yield from started(model=str(FOLDER), diffusion_config=None, max_num_batched_tokens=64)


def of_golden(case: dict[str, Any]) -> Case:
    """A golden case as a request; its parameters are SGLang's."""
    params = case["params"]
    return Case(
        prompt=tuple(case["prompt_ids"]),
        max_tokens=params["gen_length"],
        algorithm="insert_delete",
        block_length=params["block_length"],
        threshold=params["threshold"],
        edit_threshold=params["edit_threshold"],
        max_post_steps=params["max_post_edit_steps"],
        stop_token_ids=() if params["eos_id"] is None else (params["eos_id"],),
    )


@cache
def of_reference(case: Case) -> Edited:
    return REFERENCE.edit(
        list(case.prompt),
        case.max_tokens,
        0.5 if case.threshold is None else case.threshold,
        case.edit_threshold or 0.0,
        16 if case.max_post_steps is None else case.max_post_steps,
        case.stop_token_ids[0] if case.stop_token_ids else None,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_reference(case: dict[str, Any]) -> None:
    """Ours is the published decoder, step for step; that one runs every commit as a pass of its own."""
    found = of_reference(of_golden(case))
    assert found.output_ids == case["output_ids"]
    assert [[*entry] for entry in found.trace] == case["trace"]
    assert found.denoising_steps + found.commits == case["num_forward"]


def test_first_forward() -> None:
    first = np.load(FOLDER / "first_forward_logits.npz")
    found = REFERENCE.logits(first["input_ids"].tolist(), 8)
    assert torch.allclose(found, torch.from_numpy(first["logits"]), atol=1e-4)


def check(results: list[dict[str, Any]], cases: list[dict[str, Any]]) -> None:
    """Ids, the pass that wrote each last, and passes are the published ones."""
    for result, case in zip(results, cases, strict=True):
        assert result["token_ids"] == case["output_ids"], case["name"]
        commits = of_reference(of_golden(case)).commits
        assert result["steps"] == case["num_forward"] - commits, case["name"]


def test_alone(llada22: Any) -> None:
    check([run(llada22, [of_golden(case)])[0] for case in CASES], CASES)


def test_batched(llada22: Any) -> None:
    twice = CASES + CASES[::-1]
    check(run(llada22, [of_golden(case) for case in twice]), twice)


def test_the_step_that_wrote_a_position_last(llada22: Any) -> None:
    """The trace counts denoising steps; SGLang's index counts commits too."""
    for case in CASES[:1] + CASES[-2:]:
        result = run(llada22, [of_golden(case)])[0]
        assert result["unmask_steps"][:8] == case["unmask_step"][:8], case["name"]


def test_defaults(llada22: Any) -> None:
    """With no parameters: insertions and deletions, threshold 0.5, every disagreement is written."""
    from vllm import SamplingParams

    prompt = list(random_prompt(37, 5))
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, detokenize=False)
    output = llada22.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0]
    want = REFERENCE.edit(prompt, 20, 0.5, 0.0, 16)
    assert list(output.outputs[0].token_ids) == want.output_ids


def test_a_long_prompt_in_chunks_and_from_the_cache(llada22: Any) -> None:
    """A chunk ends with a block, whose tokens pool their experts; cached blocks are whole."""
    case = Case(random_prompt(301, 8), 10, "insert_delete", 8, threshold=0.6, max_post_steps=3)
    want = of_reference(case)
    for cached in (0, 256):
        result = run(llada22, [case, Case(random_prompt(17, 9), 8, "insert_delete", None)])[0]
        assert result["token_ids"] == want.output_ids
        assert result["cached"] >= cached


class Biased(Llada22Reference):
    """The reference, some ids left out."""

    left_out: tuple[int, ...] = ()

    @override
    def logits(self, ids: list[int], block_length: int) -> torch.Tensor:
        found = super().logits(ids, block_length)
        found[:, list(self.left_out)] -= 1e9
        return found


def test_biased_logits(llada22: Any) -> None:
    """Proposals, the anti-loop and the last step read the logits as the request changed them."""
    from vllm import SamplingParams

    reference = Biased(FOLDER)
    for case in CASES[:3]:
        reference.left_out = tuple(case["output_ids"])
        asked = of_golden(case)
        params: SamplingParams = asked.sampling_params()
        params.logit_bias = dict.fromkeys(reference.left_out, -1e9)
        prompts = [{"prompt_token_ids": case["prompt_ids"]}] * 2
        outputs = llada22.generate(prompts, [params, asked.sampling_params()], use_tqdm=False)
        changed, plain = (list(output.outputs[0].token_ids) for output in outputs)
        assert plain == case["output_ids"]
        assert asked.edit_threshold is not None and asked.max_post_steps is not None
        want = reference.edit(
            case["prompt_ids"],
            asked.max_tokens,
            asked.threshold or 0.0,
            asked.edit_threshold,
            asked.max_post_steps,
        )
        assert changed == want.output_ids


def test_drawn_tokens_follow_the_seed(llada22: Any) -> None:
    from vllm import SamplingParams

    params = [
        SamplingParams(temperature=1.0, seed=seed, max_tokens=24, ignore_eos=True, detokenize=False)
        for seed in (1, 1, 2)
    ]
    prompt = {"prompt_token_ids": CASES[0]["prompt_ids"]}
    one, same, other = (
        list(o.outputs[0].token_ids) for o in llada22.generate([prompt] * 3, params, use_tqdm=False)
    )
    assert one == same != other
    assert not {507, 508, 509} & set(one + other)


@pytest.mark.parametrize(
    ("extra", "params", "message"),
    [
        ({"diffusion_algorithm": "low_confidence_dynamic"}, {}, "would write this model's delete and split"),
        ({"diffusion_block_length": 4}, {}, "must be 8: the tokens of a block choose their experts"),
        ({"diffusion_max_post_steps": 257}, {}, "max_post_steps=257 must be at most 256"),
        ({"diffusion_max_steps": 3}, {}, "diffusion_max_steps=3 is not supported"),
        ({"diffusion_seed_canvas": [1, 507]}, {}, "is not supported with"),
        ({}, {"logprobs": 2}, "logprobs=2 is not supported"),
        ({}, {"allowed_token_ids": [508, 509]}, "may leave a position without any token"),
    ],
)
def test_refused(llada22: Any, extra: dict[str, Any], params: dict[str, Any], message: str) -> None:
    from vllm import SamplingParams

    how = SamplingParams(max_tokens=8, extra_args=extra, **params)
    with pytest.raises(ValueError, match=message):
        llada22.generate({"prompt_token_ids": [1, 2, 3]}, how, use_tqdm=False)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"expert_capacity": 3}, "expert_capacity=3 must be from num_experts_per_tok=4"),
        ({"expert_capacity": 6, "block_size": None}, "needs block_size"),
        ({"delete_token_id": None}, "delete_token_id=None must be an id"),
        ({"split_token_id": 512}, "split_token_id=512 must be an id"),
        ({"delete_token_id": 507}, "delete_token_id=507 is mask_token_id too"),
        ({"split_token_id": 508}, "split_token_id=508 is delete_token_id too"),
        ({"expert_pool_size": 4}, "expert_pool_size=4 is not known"),
        ({"score_function": "softmax"}, 'score_function="softmax", of which the family knows "sigmoid"'),
    ],
)
def test_refused_configurations(tmp_path: Path, members: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        altered_configuration(FOLDER, tmp_path, **members)


def test_block_routing_alone(tmp_path: Path) -> None:
    """A checkpoint that pools experts and edits nothing is decoded as LLaDA2.0."""
    config = altered_configuration(
        FOLDER, tmp_path, delete_token_id=None, split_token_id=None, vision_tower=None
    )
    assert config.model_config.architectures == ["LLaDA2MoeModelLM"]
    assert config.diffusion_config.algorithm == "low_confidence_dynamic"
    assert config.diffusion_config.pooled_block_length == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"enable_expert_parallel": True}, "enable_expert_parallel is not supported with expert_capacity=6"),
        ({"diffusion_config": {"block_length": 16}}, "block_length=16 must be 8, the model's block_size"),
        ({"diffusion_config": {"delete_token_id": 3}}, "delete_token_id=3 must be the model's own, 508"),
    ],
)
def test_refused_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        altered_configuration(FOLDER, tmp_path, settings)
