# SPDX-License-Identifier: Apache-2.0
"""Templates with holes: what is given stays, what is written is what the reference writes."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tests.engine.cases import VOCABULARY, Case, random_prompt, reference, run
from tests.engine.conftest import GOLDEN, run_elsewhere
from tests.engine.likelihoods import ESTIMATORS, TOLERANCE
from tests.reference.bidirectional import LladaReference
from tests.reference.likelihood import scores
from vllm import SamplingParams

PROMPT = {"prompt_token_ids": list(random_prompt(9, 12))}
MASK = 508


def templates(seed: int, algorithms: list[str], block_lengths: tuple[int, ...]) -> list[Case]:
    """Templates with holes inside blocks, across blocks, and blocks without any."""
    rng = random.Random(seed)
    cases = []
    for i in range(12):
        template: list[int] = []
        while len(template) < 30 + 5 * i:
            given = [rng.randrange(VOCABULARY) for _ in range(rng.choice((1, 3, 10, 33)))]
            template += [*given, *[-1] * rng.choice((1, 2, 9, 20))]
        if i % 3 == 0:
            template.reverse()
        algorithm = algorithms[i % len(algorithms)]
        cases.append(
            Case(
                random_prompt(5 + 7 * i, seed + i),
                len(template),
                algorithm,
                block_lengths[i % len(block_lengths)],
                steps=None if "threshold" in algorithm else 4,
                threshold=0.4 if algorithm in ("threshold", "low_confidence_dynamic") else None,
                template=tuple(template),
            )
        )
    return cases


BLOCK_CAUSAL = templates(1, ["low_confidence_static", "low_confidence_dynamic", "sequential"], (4, 16, 8))


def check_block_causal(results: list[dict[str, Any]]) -> None:
    for result, case in zip(results, BLOCK_CAUSAL, strict=True):
        assert case.template is not None
        assert case.block_length is not None
        want = reference().generate(
            list(case.prompt),
            len(case.template),
            case.block_length,
            case.steps or case.block_length,
            case.algorithm,
            case.threshold or 0.0,
            template=case.template,
        )
        assert result["token_ids"] == want.output_ids, case
        given = [token >= 0 for token in case.template]
        assert given == [step < 0 for step in result["unmask_steps"]], case
        assert all(p == 1 for p, held in zip(result["probabilities"], given, strict=True) if held)


def test_block_causal(engine: Any) -> None:
    check_block_causal(run(engine, BLOCK_CAUSAL))


def test_block_causal_asynchronous_and_preempted() -> None:
    """Requests whose prompts are scored among them: preempted while they are scored, or answered."""
    asked = [
        replace(case, likelihood=ESTIMATORS[i % 2] if i % 3 else None) for i, case in enumerate(BLOCK_CAUSAL)
    ]
    (results,) = run_elsewhere(
        [asked],
        env={"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        async_scheduling=True,
        max_model_len=256,
        block_size=32,
        num_gpu_blocks_override=16,
        enable_prefix_caching=False,
    )
    assert results[-1]["vllm:num_preemptions"] > 0
    check_block_causal(results[:-1])
    sdar = reference()
    for result, case in zip(results[:-1], asked, strict=True):
        block, text = case.block_length, list(case.prompt)
        assert block is not None
        want = []
        if case.likelihood is not None:
            at_once = case.likelihood == "one_step"
            logits = partial(sdar.logits, block_length=block)
            want = scores(logits, text, sdar.mask_id, 1, block, at_once=at_once)
        assert result["scores"] == pytest.approx(want, abs=TOLERANCE)


def test_bidirectional_asynchronous_and_short_of_cache() -> None:
    """Here what stands to the right of a hole is seen."""
    cases = templates(2, ["low_confidence_static", "threshold"], (8, 16, 5))
    modes = (None, "dual", "prefix")
    cases = [replace(case, cache=modes[i // 2 % 3]) for i, case in enumerate(cases)]
    # Without a template, when a block finishes is known in advance.
    cases += [replace(case, template=None, max_tokens=41 + i) for i, case in enumerate(cases)]
    (results,) = run_elsewhere(
        [cases],
        env={"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        async_scheduling=True,
        model=str(GOLDEN / "llada"),
        max_model_len=256,
        max_num_batched_tokens=512,
        diffusion_config={"block_length": 16},
        block_size=32,
        num_gpu_blocks_override=24,
    )
    # A canvas is admitted with all its KV blocks: requests wait for some, and none is preempted.
    assert results[-1]["vllm:num_preemptions"] == 0
    llada = LladaReference(GOLDEN / "llada")
    for result, case in zip(results[:-1], cases, strict=True):
        assert case.block_length is not None
        want = llada.generate(
            list(case.prompt),
            case.max_tokens if case.template is None else len(case.template),
            case.block_length,
            case.steps or case.block_length,
            case.algorithm,
            case.threshold,
            case.cache or "none",
            template=case.template,
        )
        assert result["token_ids"] == want.output_ids, case


def test_text(engine: Any) -> None:
    """Pieces are tokenised alone; the answer holds them all, and end tokens end nothing."""
    args = {"diffusion_infill": "<|hole:2|>t7 t8<|hole:3|> <|endoftext|> t9<|hole:1|>"}
    params = SamplingParams(temperature=0, logprobs=1, extra_args=args)
    for _ in range(2):  # Parameters may be used again.
        (output,) = engine.generate([PROMPT], params, use_tqdm=False)
        ids = list(output.outputs[0].token_ids)
        assert len(ids) == 10 and ids[2:4] == [7, 8] and ids[7:9] == [490, 9]
        assert output.outputs[0].finish_reason == "length"
        logprobs = output.outputs[0].logprobs
        assert len(logprobs) == 10
        assert all(one[token].logprob <= 0 for token, one in zip(ids, logprobs, strict=True))


@pytest.mark.parametrize(
    ("extra_args", "says"),
    [
        ({"diffusion_pinned": [0]}, "diffusion_pinned=.* needs a diffusion_seed_canvas"),
        ({"diffusion_seed_canvas": []}, "diffusion_seed_canvas"),
        ({"diffusion_seed_canvas": [1.5]}, "diffusion_seed_canvas"),
        ({"diffusion_seed_canvas": [MASK, 512]}, "ids below 512"),
        ({"diffusion_seed_canvas": [MASK, -2]}, "diffusion_seed_canvas"),
        ({"diffusion_seed_canvas": [1, 2]}, "nothing to write"),
        ({"diffusion_seed_canvas": [MASK] * 1024}, "leave room"),
        ({"diffusion_seed_canvas": [1, 2], "diffusion_pinned": [2]}, "from 0 to 1"),
        ({"diffusion_seed_canvas": [1, 2], "diffusion_pinned": [1, 1]}, "twice"),
        ({"diffusion_seed_canvas": [1, MASK], "diffusion_pinned": [1]}, "the mask token"),
        ({"diffusion_seed_canvas": [1, 2], "diffusion_pinned": "01"}, "diffusion_pinned"),
        ({"diffusion_infill_ids": [1, 2]}, "nothing to write"),
        ({"diffusion_infill_ids": [-1, -2]}, "diffusion_infill_ids=.* must be a list of token ids, -1 for a"),
        ({"diffusion_infill_ids": [-1, 512]}, "diffusion_infill_ids=.* ids below 512"),
        ({"diffusion_infill_ids": [-1, MASK]}, "holds the mask token 508 at .1.: a hole is -1"),
        ({"diffusion_infill_ids": [-1], "diffusion_infill": "<|hole:1|>a"}, "exclude each other"),
        ({"diffusion_infill_ids": [-1], "diffusion_seed_canvas": [MASK]}, "exclude each other"),
        ({"diffusion_infill": "t1 t2"}, "must have a hole"),
        ({"diffusion_infill": "t1<|hole|>t2"}, "must have a hole"),
        ({"diffusion_infill": "t1<|hole:4|>t2<|hole:-1|>"}, "written as"),
        ({"diffusion_infill": "t1<|hole:0|>"}, "written as"),
        ({"diffusion_infill": "t1<|hole:99999|>"}, "below 1024"),
        ({"diffusion_infill": "t1<|MASK|><|hole:1|>"}, "the mask token"),
        ({"diffusion_infill": 3}, "diffusion_infill"),
        ({"diffusion_infill": "t1<|hole:4|>", "diffusion_seed_canvas": [1, MASK]}, "exclude"),
    ],
)  # fmt: skip
def test_refused(engine: Any, extra_args: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        engine.generate([PROMPT], SamplingParams(extra_args=extra_args), use_tqdm=False)


def test_refused_beside_other_parameters(engine: Any) -> None:
    """A template decides how long the answer is, and is never cut."""
    args = {"diffusion_seed_canvas": [1, MASK, MASK, 2]}
    run = partial(engine.generate, use_tqdm=False)
    with pytest.raises(ValueError, match="min_tokens=5 must not exceed the 4 tokens"):
        run([PROMPT], SamplingParams(max_tokens=8, min_tokens=5, extra_args=args))
    with pytest.raises(
        ValueError, match="diffusion_seed_canvas: 4 tokens do not fit behind a prompt of 1021"
    ):
        run([{"prompt_token_ids": [5] * 1021}], SamplingParams(extra_args=args))
    text = {"diffusion_infill": "t1<|hole:1000|>t2"}
    with pytest.raises(ValueError, match=r"diffusion_infill: 100[0-9] tokens do not fit"):
        run([{"prompt_token_ids": [5] * 100}], SamplingParams(extra_args=text))
    (fits,) = run([{"prompt_token_ids": [5] * 1020}], SamplingParams(extra_args=args, min_tokens=4))
    ids = list(fits.outputs[0].token_ids)
    assert (len(ids), ids[0], ids[3]) == (4, 1, 2)
