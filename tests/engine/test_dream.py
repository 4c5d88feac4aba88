# SPDX-License-Identifier: Apache-2.0
"""Dream: published ids and the plain reference, with each cache mode, request by request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from tests.engine import checkpoints
from tests.engine.cases import Case, forced, random_prompt, run
from tests.engine.conftest import GOLDEN, started
from tests.engine.layouts import DREAM_GENERATION
from tests.engine.likelihoods import check_bidirectional, check_samples
from tests.engine.multi_block import d3llm
from tests.engine.multi_block import expected as expected_open
from tests.engine.vocabularies import MERGES
from tests.reference.bidirectional import DreamReference
from tests.reference.multi_block import D3llm
from vllm.v1.diffusion.policies.noise import gumbel, uniform

FOLDER = GOLDEN / "dream"
CASES = [
    case
    for file in ("cases.json", "cases_fastdllm.json")
    for case in json.loads((FOLDER / file).read_text())["cases"]
]
LENGTHS = (1, 7, 33, 130)


@pytest.fixture(scope="module")
def dream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine of the golden weights in Dream's published layout, with the family's defaults."""
    folder = checkpoints.dream(tmp_path_factory.mktemp("dream"), FOLDER)
    own = {"diffusion_config": None, "max_model_len": 2048, "async_scheduling": True}
    yield from started(model=str(folder), **own)


@cache
def reference() -> DreamReference:
    """The golden checkpoint in the plain reference."""
    return DreamReference(FOLDER)


def test_likelihood(dream: Any) -> None:
    """A block is as long as the context, so one step scores a text."""
    check_bidirectional(dream, reference(), 2048)
    check_samples(dream, reference())


def test_sub_blocks_that_open_early(dream: Any) -> None:
    """d3LLM on a model whose row i predicts token i + 1."""
    ways = [
        (random_prompt(9, 801), D3llm(32, 8, 1.0, 0.25)),
        (random_prompt(1, 802), D3llm(27, 6, 0.5, 0.5)),
    ]
    results = run(dream, [d3llm(prompt, how) for prompt, how in ways])
    for result, (prompt, how) in zip(results, ways, strict=True):
        want = expected_open(reference(), prompt, how)
        assert (result["token_ids"], result["unmask_steps"]) == (want.output_ids, want.unmask_step)


def of_golden(case: dict[str, Any]) -> Case:
    """A golden case as a request; Fast-dLLM's block modes do not read the steps."""
    params = case["params"]
    how: dict[str, Any] = {"algorithm": params["alg"], "steps": params["steps"], "block_length": None}
    if params["alg"] == "confidence_threshold":
        how["threshold"] = params["threshold"]
        if params["mode"] != "full":
            how |= {"steps": None, "block_length": params["block_length"], "cache": params["mode"]}
    else:
        how["eps"] = params["eps"]
    return Case(tuple(case["prompt_ids"]), len(case["output_ids"]), top_k=params["top_k"] or 0, **how)


def mixed() -> list[Case]:
    """16 requests of many shapes and every cache mode; some canvases end inside a block."""
    ways: list[dict[str, Any]] = [
        {"algorithm": "entropy"},
        {"algorithm": "maskgit_plus", "steps": 5, "top_k": 4},
        {"algorithm": "topk_margin", "steps": 7, "eps": 0.05},
        {"algorithm": "confidence_threshold", "threshold": 0.5, "steps": 4},
        {"algorithm": "threshold", "threshold": 0.5},
        {"algorithm": "low_confidence_static", "steps": 3},
    ]
    return [
        Case(
            random_prompt(LENGTHS[i % 4], 60 + i),
            (16, 24, 21, 40)[(i // 2) % 4],
            block_length=(None, 8, 16, 32)[(i // 4 + i) % 4],
            cache=(None, "prefix", "dual", "none")[(i // 4) % 4],
            **ways[(i // 4 + i) % 6],
        )
        for i in range(16)
    ]


def check_golden(result: dict[str, Any], case: dict[str, Any]) -> None:
    """Ids, order of unmasking and forward passes are the published ones."""
    assert result["token_ids"] == case["output_ids"], case["name"]
    assert result["unmask_steps"] == case["unmask_step"], case["name"]
    assert result["steps"] == case["num_forward"], case["name"]


def test_golden_alone(dream: Any) -> None:
    for case in CASES:
        check_golden(run(dream, [of_golden(case)])[0], case)


def test_golden_batched(dream: Any) -> None:
    for result, case in zip(run(dream, [of_golden(c) for c in CASES]), CASES, strict=True):
        check_golden(result, case)


def check(results: list[dict[str, Any]], cases: list[Case]) -> None:
    """The engine says what the reference says."""
    for result, case in zip(results, cases, strict=True):
        block = min(case.block_length or case.max_tokens, case.max_tokens)
        want = reference().generate(
            list(case.prompt),
            case.max_tokens,
            block,
            case.steps,
            case.algorithm,
            case.threshold,
            case.cache or "none",
            eps=case.eps or 1e-3,
            top_k=case.top_k,
        )
        assert result["token_ids"] == want.output_ids, case
        assert result["unmask_steps"] == want.unmask_step, case
        assert result["steps"] == want.denoising_steps, case


def test_mixed_batch(dream: Any) -> None:
    check(run(dream, mixed()), mixed())


def test_steps_that_were_asked_for_stay_where_the_response_is_shorter(dream: Any) -> None:
    ways = ({"algorithm": "entropy"}, {"algorithm": "maskgit_plus", "eps": 0.5}, {"algorithm": "topk_margin"})
    cases = [Case(random_prompt(7, 90), 10, steps=16, block_length=16, **how) for how in ways]
    check(run(dream, cases), cases)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_given_first_token_costs_a_cached_block_no_step(dream: Any, cache: str) -> None:
    """The block's first step unmasks what its policy chooses, since its first token is there."""
    template = (5, *[-1] * 6, 7, *[-1] * 8)
    case = Case(random_prompt(7, 91), 16, "topk_margin", 8, 2, eps=0.5, cache=cache, template=template)
    want = reference().generate(
        list(case.prompt), 16, 8, 2, case.algorithm, cache=cache, eps=0.5, template=template
    )
    result = run(dream, [case])[0]
    assert result["token_ids"] == want.output_ids
    # Of the first block both steps unmask something; the second's first token takes one of its own.
    assert result["unmask_steps"] == [
        s if t < 0 else -1 for s, t in zip(want.unmask_step, template, strict=True)
    ]
    assert set(result["unmask_steps"]) >= {0, 1}


@pytest.mark.parametrize(
    "how",
    [
        {"algorithm": "entropy", "steps": 5},
        {"algorithm": "low_confidence_static", "steps": 4},
        {"algorithm": "maskgit_plus", "steps": 3, "block_length": 700, "cache": "dual"},
    ],
)
def test_a_long_response(dream: Any, how: dict[str, Any]) -> None:
    """One block of 1500 tokens, or two; the context ends with it."""
    case = Case(random_prompt(548, 5), 1500, **{"block_length": None} | how)
    prompt, block = list(case.prompt), case.block_length or 1500
    want = reference().generate(
        prompt, 1500, block, case.steps or 0, case.algorithm, cache=case.cache or "none"
    )
    result = run(dream, [case])[0]
    assert result["token_ids"] == want.output_ids
    assert result["unmask_steps"] == want.unmask_step


def test_a_response_longer_than_a_block_can_be() -> None:
    """It is refused by name, unless it names a block length, or the operator a canvas; what fits is not."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.diffusion.loops.full import FullDiffusionLoop

    config = EngineArgs(model=str(FOLDER), max_model_len=8192, dtype="float32").create_engine_config()
    admit = FullDiffusionLoop().validate_params
    with pytest.raises(ValueError, match="max_tokens=4097 must not exceed 4096"):
        admit(SamplingParams(max_tokens=4097), config)
    admit(SamplingParams(max_tokens=4097, extra_args={"diffusion_block_length": 4096}), config)
    admit(SamplingParams(max_tokens=4096), config)
    admit(unsaid := SamplingParams(max_tokens=None), config)
    assert unsaid.max_tokens == 512
    how: Any = {"max_canvas_length": 1024, "default_max_tokens": 900}
    config = EngineArgs(
        model=str(FOLDER), max_model_len=8192, dtype="float32", diffusion_config=how
    ).create_engine_config()
    admit(SamplingParams(max_tokens=4097), config)
    admit(unsaid := SamplingParams(max_tokens=None), config)
    assert unsaid.max_tokens == 900


def test_defaults_are_the_published_ones(dream: Any) -> None:
    """With no parameters: one block, a step for every token, lowest entropy first."""
    from vllm import SamplingParams

    case = next(c for c in CASES if c["name"] == "p7_g32_s32_entropy")
    params = SamplingParams(temperature=0, max_tokens=32, detokenize=False)
    output = dream.generate({"prompt_token_ids": case["prompt_ids"]}, params, use_tqdm=False)[0]
    assert list(output.outputs[0].token_ids) == case["output_ids"]


def test_text_and_chat_are_qwen2_s(dream: Any) -> None:
    """The pre-tokenizer parts words and digits, accents are composed, roles are special tokens."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=12)
    hello = [259, 262, ord("l"), ord("d"), 263, ord(" "), ord("1"), ord("2"), ord(" "), 0xC3, 0xA9]
    text = dream.generate("hello world's 12 e\u0301", params, use_tqdm=False)[0]
    said = [491, *b"user\n", 259, 492, ord("\n"), 491, *b"assistant\n"]
    chat = dream.chat([{"role": "user", "content": "hello"}], params, use_tqdm=False)[0]
    for output, prompt in ((text, hello), (chat, said)):
        assert list(output.prompt_token_ids) == prompt
        ids = reference().generate(prompt, 12, 12, 12, "entropy").output_ids
        assert list(output.outputs[0].token_ids) == ids
        assert output.outputs[0].text == bytes_of(ids).decode(errors="replace")


def bytes_of(ids: list[int]) -> bytes:
    """The text of ids, without special tokens and what no token has."""
    pieces = [bytes([i]) for i in range(256)] + [
        m.replace(" ", "").replace("\u0120", " ").encode() for m in MERGES
    ]
    pieces += [f"t{i}".encode() for i in range(len(pieces), 490)]
    return b"".join(pieces[i] for i in ids if i < len(pieces))


def test_end_tokens_end_nothing_unless_they_are_asked_for(dream: Any) -> None:
    """None of the generation config's, be they one or several; ``stop_token_ids`` do."""
    for end in DREAM_GENERATION["eos_token_id"]:
        assert forced(dream, end) == [end] * 20
        assert forced(dream, end, stop_token_ids=[end]) == [end]
        assert forced(dream, end, stop_token_ids=[7]) == [end] * 20


@pytest.mark.parametrize("how", [{"algorithm": "entropy", "alg_temperature": 0.5}, {"algorithm": "origin"}])
def test_drawn_positions_follow_the_seed(dream: Any, how: dict[str, Any]) -> None:
    """The same in any batch, another order with another seed, as many positions a step."""
    one, other = (
        Case(random_prompt(9, 2), 24, block_length=None, steps=8, seed=seed, **how) for seed in (1, 2)
    )
    alone = run(dream, [one])[0]
    among, differs, _ = run(dream, [one, other, mixed()[3]])
    assert among == alone
    assert differs["unmask_steps"] != alone["unmask_steps"]
    assert alone["steps"] == 8


def test_a_mask_token_in_the_prompt_is_text(dream: Any) -> None:
    prompt = list(random_prompt(37, 3))
    prompt[5] = prompt[-1] = reference().mask_id
    case = Case(tuple(prompt), 12, "entropy", None)
    want = reference().generate(prompt, 12, 12, 12, "entropy")
    assert run(dream, [case])[0]["token_ids"] == want.output_ids


def test_position_noise_is_uniform() -> None:
    seed = torch.arange(64)[:, None] - 9
    drawn = uniform(seed, torch.arange(256).expand(64, -1), torch.tensor([[3]]))
    assert drawn.min() > 0 and drawn.max() < 1
    counts = torch.histc(drawn.float(), bins=16, min=0, max=1)
    assert ((counts - 1024).square() / 1024).sum() < 38  # chi square, 15 degrees, 0.1 %
    assert abs(gumbel(seed, torch.arange(256).expand(64, -1), torch.tensor([[3]])).mean() - 0.5772) < 0.05
