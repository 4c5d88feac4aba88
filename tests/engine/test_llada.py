# SPDX-License-Identifier: Apache-2.0
"""LLaDA: published ids and the plain reference, with each cache mode."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from tests.engine.cases import Case, random_prompt, run
from tests.engine.conftest import GOLDEN, SETTINGS, run_elsewhere
from tests.engine.likelihoods import check_bidirectional, check_samples
from tests.engine.multi_block import PUBLISHED, check_odd, check_published, d3llm, odd, of_published
from tests.engine.multi_block import published as multi_block_published
from tests.engine.watching import check, watch
from tests.reference.bidirectional import GuidedReference, LladaReference
from tests.reference.sdar import Decoded
from vllm.sampling_params import StructuredOutputsParams

FOLDER = GOLDEN / "llada"
LENGTHS = (1, 7, 33, 130)
MODES = ("none", "prefix", "dual")
OWN_MODE = "dual"


@cache
def reference() -> LladaReference:
    """The golden checkpoint in the plain reference."""
    return LladaReference(FOLDER)


def published() -> list[dict[str, Any]]:
    """The published cases, of every cache mode."""
    return [
        case
        for file in ("cases.json", "cases_fastdllm.json")
        for case in json.loads((FOLDER / file).read_text())["cases"]
    ]


def in_engine(mode: str) -> str | None:
    """How a request asks for a cache mode: the engine's own one not at all."""
    return None if mode == OWN_MODE else mode


def of_golden(case: dict[str, Any]) -> Case:
    """A published case as a request: its steps count all blocks, ours one."""
    params = case["params"]
    blocks = params["gen_length"] // params["block_length"]
    how: dict[str, Any] = {"algorithm": "low_confidence_static"}
    if params.get("threshold") is not None:
        how = {"algorithm": "threshold", "threshold": params["threshold"]}
    elif params.get("factor") is not None:
        how = {"algorithm": "factor", "factor": params["factor"]}
    else:
        how["steps"] = max(params["steps"] // blocks, 1)
    return Case(
        tuple(case["prompt_ids"]),
        params["gen_length"],
        block_length=params["block_length"],
        cache=in_engine(params.get("cache", "none")),
        confidence_eos_eot_inf=params.get("confidence_eos_eot_inf"),
        **how,
    )


@pytest.fixture(scope="module")
def llada() -> Iterator[Any]:
    """An engine whose steps are as large as its context: batches do not fit, requests wait.

    A step is planned while the one before it is in flight.
    """
    from vllm import LLM

    own = {
        "model": str(FOLDER),
        "max_model_len": 512,
        "max_num_batched_tokens": 512,
        "async_scheduling": True,
    }
    llm = LLM(**SETTINGS | own | {"diffusion_config": {"block_length": 64, "cache": OWN_MODE}})
    assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling
    yield llm
    llm.llm_engine.engine_core.shutdown()


def mixed() -> list[Case]:
    """16 requests of many shapes and every cache mode; some canvases end inside a block."""
    ways: list[dict[str, Any]] = [
        {"algorithm": "low_confidence_static"},
        {"algorithm": "low_confidence_static", "steps": 3},
        {"algorithm": "threshold", "threshold": 0.5},
        {"algorithm": "factor", "factor": 0.8},
    ]
    return [
        Case(
            random_prompt(LENGTHS[i % 4], 40 + i),
            (16, 24, 21, 40)[(i // 2) % 4],
            block_length=(8, 16, 32)[i % 3],
            cache=in_engine(MODES[(i // 3) % 3]),
            **ways[(i // 4 + i) % 4],
        )
        for i in range(16)
    ]


def test_a_canvas_is_read_as_upstream_s_decisions_do(llada: Any) -> None:
    """One step, a part of the canvas, log probabilities of listed ids; the rest of the canvas is seen."""
    from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy

    prompt, listed = list(random_prompt(9, 77)), [20, 30, 40]
    canvas = [reference().mask_id, 106, *[3] * 14]
    read = {"seed_canvas": canvas, "canvas_length": 16, "max_steps": 1, "read_only": True}
    params = [
        SamplingParams(
            max_tokens=2,
            temperature=0,
            logprob_token_ids=listed,
            extra_args=DiffusionParams(**read, **more).to_extra_args(),
        )
        for more in ({}, {"constrained": True})
    ]
    outputs = llada.generate([{"prompt_token_ids": prompt}] * 2, params, use_tqdm=False)
    plain, among = (output.outputs[0] for output in outputs)
    assert [len(one.token_ids) for one in (plain, among)] == [2, 2]
    assert plain.token_ids[1] == among.token_ids[1] == 106
    assert among.token_ids[0] in listed
    ids = prompt + canvas
    want = reference().forward(ids, range(len(ids)), [])[len(prompt)].log_softmax(-1)
    mass = want[listed].logsumexp(0)
    for token in listed:
        assert plain.logprobs[0][token].logprob == pytest.approx(float(want[token]), abs=1e-3)
        assert among.logprobs[0][token].logprob == pytest.approx(float(want[token] - mass), abs=1e-3)


def test_likelihood(llada: Any) -> None:
    check_bidirectional(llada, reference(), 64)
    check_samples(llada, reference())


def test_golden_alone(llada: Any) -> None:
    for case in published()[::3]:
        assert run(llada, [of_golden(case)])[0]["token_ids"] == case["output_ids"], case["name"]


def test_golden_batched(llada: Any) -> None:
    check_golden(run(llada, [of_golden(c) for c in published()]))


def check_golden(results: list[dict[str, Any]]) -> None:
    """Ids, and where they are published the order of unmasking and its probabilities."""
    for result, case in zip(results, published(), strict=True):
        assert result["token_ids"] == case["output_ids"], case["name"]
        if "cache" not in case["params"]:
            assert result["unmask_steps"] == case["unmask_step"], case["name"]
            assert result["probabilities"] == pytest.approx(case["unmask_conf"], abs=1e-4)


@cache
def expected(case: Case) -> Decoded:
    """What the reference generates for a request."""
    assert case.block_length
    return reference().generate(
        list(case.prompt),
        case.max_tokens,
        case.block_length,
        case.steps or case.block_length,
        case.algorithm,
        case.threshold if case.factor is None else case.factor,
        case.cache or OWN_MODE,
    )


def test_mixed_batch(llada: Any) -> None:
    check_mixed(run(llada, mixed()))


def test_synchronous() -> None:
    """The same where each step is planned by the output of the one before it."""
    own = {"block_length": 64, "cache": OWN_MODE}
    golden, batch = run_elsewhere(
        [[of_golden(c) for c in published()], mixed()],
        model=str(FOLDER),
        max_model_len=512,
        diffusion_config=own,
        async_scheduling=False,
    )
    check_golden(golden[:-1])
    check_mixed(batch[:-1])


def check_mixed(results: list[dict[str, Any]]) -> None:
    """Ids, order of unmasking and number of steps are the reference's."""
    check_results(results, mixed())


def check_results(results: list[dict[str, Any]], cases: list[Case]) -> None:
    """The same for some requests."""
    for result, case in zip(results, cases, strict=True):
        want = expected(case)
        assert result["token_ids"] == want.output_ids, case
        assert result["unmask_steps"] == want.unmask_step, case
        assert result["steps"] == want.denoising_steps, case


def test_an_end_token_ends_nothing_unless_it_is_asked_for(llada: Any) -> None:
    """As in the published loop; a stop id cuts the response behind it."""
    from vllm import SamplingParams

    case = Case(random_prompt(7, 63), 16, "low_confidence_static", 16, steps=4, cache="none")
    eos, ids = reference().config["eos_token_id"], expected(case).output_ids
    assert eos in ids[:-1]
    how = case.sampling_params().extra_args
    params = [
        SamplingParams(temperature=0, max_tokens=16, detokenize=False, stop_token_ids=stops, extra_args=how)
        for stops in ([], [eos])
    ]
    prompt = {"prompt_token_ids": list(case.prompt)}
    outputs = llada.generate([prompt, prompt], params, use_tqdm=False)
    whole, cut = (list(output.outputs[0].token_ids) for output in outputs)
    assert whole == ids
    assert cut == ids[: ids.index(eos) + 1]


def test_a_mask_token_in_the_prompt_is_text(llada: Any) -> None:
    prompt = list(random_prompt(37, 3))
    prompt[5] = prompt[-1] = reference().mask_id
    cases = [
        Case(tuple(prompt), 24, "low_confidence_static", 8, cache=in_engine(mode), steps=3) for mode in MODES
    ]
    for result, case in zip(run(llada, cases), cases, strict=True):
        assert result["token_ids"] == expected(case).output_ids, case


REGEX = "t7t(8|9)t[1-3]"
"""Tokens of the golden checkpoint's vocabulary."""


def check_regex(ids: Sequence[int]) -> None:
    """Three tokens that the regular expression wants, and the end."""
    assert ids[0] == 7
    assert ids[1] in (8, 9)
    assert ids[2] in (1, 2, 3)
    assert len(ids) <= 4


LEAPS: list[dict[str, Any]] = json.loads((GOLDEN / "localleap" / "cases.json").read_text())["cases"]


def leaping(case: dict[str, Any]) -> Case:
    """A case of LocalLeap's as a request."""
    params = case["params"]
    block, names = params["block_length"], ("anchor_threshold", "neighbor_threshold", "radius")
    return Case(
        tuple(case["prompt_ids"]),
        params["gen_length"],
        "local_leap",
        block,
        steps=params["steps"] * block // params["gen_length"],
        cache="none",
        own=tuple((f"diffusion_{name}", params[name]) for name in names),
    )


def check_leaps(results: list[dict[str, Any]], cases: list[dict[str, Any]]) -> None:
    """Ids, order of unmasking and forward passes are the published ones."""
    for result, case in zip(results, cases, strict=True):
        assert result["token_ids"] == case["output_ids"], case["name"]
        assert result["unmask_steps"] == case["unmask_step"], case["name"]
        assert result["steps"] == case["num_forward"], case["name"]


def test_local_leap(llada: Any) -> None:
    """Alone and in one batch with other policies."""
    for case in LEAPS[::3]:
        check_leaps(run(llada, [leaping(case)]), [case])
    plain = mixed()[:6]
    results = run(llada, [*plain, *map(leaping, LEAPS)])
    check_results(results[:6], plain)
    check_leaps(results[6:], LEAPS)


def test_local_leap_and_other_parameters(llada: Any) -> None:
    """Draws follow the seed whatever shares the batch; grammars and templates hold."""
    case = replace(leaping(LEAPS[3]), temperature=0.7, seed=5)
    kept = replace(leaping(LEAPS[3]), template=(7, *[-1] * 9, 30))
    alone, template = (run(llada, [one])[0] for one in (case, kept))
    assert run(llada, [*mixed()[:3], case])[-1] == alone
    assert (template["token_ids"][0], template["token_ids"][-1]) == (7, 30)
    params = leaping(LEAPS[3]).sampling_params()
    params.structured_outputs = StructuredOutputsParams(regex=REGEX)
    params.ignore_eos, params.logprobs = False, 1
    (output,) = llada.generate({"prompt_token_ids": list(case.prompt)}, params, use_tqdm=False)
    check_regex(output.outputs[0].token_ids)
    assert len(output.outputs[0].logprobs) == len(output.outputs[0].token_ids)


def test_local_leap_is_refused_by_name(llada: Any) -> None:
    for name, value, message in (
        ("radius", -1, "diffusion_radius=-1 must be an integer from 0 to 32768"),
        ("anchor_threshold", 1.5, "diffusion_anchor_threshold=1.5 must be a number from 0 to 1"),
        ("factor", 0.5, "diffusion_factor=0.5 has no effect with diffusion_algorithm='local_leap'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(llada, [replace(leaping(LEAPS[0]), own=((f"diffusion_{name}", value),))])


def guided(length: int, scale: float, **how: Any) -> Case:
    """A request with guidance."""
    own = (("diffusion_cfg_scale", scale),)
    settings: dict[str, Any] = {"algorithm": "low_confidence_static", "block_length": 8, "steps": 3}
    return Case(random_prompt(length, 91), 21, **settings | {"cache": "none", "own": own} | how)


def guided_cases() -> list[Case]:
    """Some canvases end with a KV block, some do not."""
    scales = (0.5, 1.5, 4.0, 0.5)
    cases = [guided(n, s) for n, s in zip((1, 9, 107, 130), scales, strict=True)]
    return [*cases, guided(20, 2.0, algorithm="threshold", steps=None, threshold=0.5)]


@cache
def expected_guided(case: Case) -> Decoded:
    """What the reference generates for one of them."""
    assert case.block_length
    model = GuidedReference(reference(), case.own[0][1], len(case.prompt))
    how = (case.block_length, case.steps, case.algorithm, case.threshold)
    return model.generate(list(case.prompt), case.max_tokens, *how)


def test_guidance(llada: Any) -> None:
    """As in the published code, whatever shares the batch."""
    cases = guided_cases()
    plain = mixed()[:7]
    batch = [case for pair in zip(cases, plain, strict=False) for case in pair] + plain[5:]
    results = run(llada, batch)
    check_results(results[1:10:2] + results[10:], plain)
    changed = 0
    for result, case in zip(results[:10:2], cases, strict=True):
        want = expected_guided(case)
        assert result["token_ids"] == want.output_ids, case
        assert result["unmask_steps"] == want.unmask_step, case
        assert run(llada, [case])[0] == result
        changed += want.output_ids != expected(replace(case, own=())).output_ids
    assert changed >= 4


def test_many_guided_requests_at_a_time(llada: Any) -> None:
    """Twelve canvases and their copies in a step, of lengths and scales of their own."""
    cases = [guided(2 + 5 * i, 0.5 + 0.25 * i) for i in range(12)]
    for result, case in zip(run(llada, cases), cases, strict=True):
        want = expected_guided(case)
        assert (result["token_ids"], result["unmask_steps"]) == (want.output_ids, want.unmask_step), case


def test_guidance_and_other_parameters(llada: Any) -> None:
    """Draws, grammars, templates, log probabilities: all read the guided logits."""
    warm: dict[str, Any] = {"temperature": 0.8, "seed": 3}
    cases = [
        guided(20, 2.0, **warm),
        guided(20, 0.0, **warm),
        guided(20, 2.0, own=(), **warm),
        guided(20, 2.0, template=(7, *[-1] * 9, 30)),
    ]
    alone, zero, without, kept = (run(llada, [case])[0] for case in cases)
    assert alone != zero == without
    assert run(llada, [*mixed()[:3], cases[0]])[-1] == alone
    assert (kept["token_ids"][0], kept["token_ids"][-1], len(kept["token_ids"])) == (7, 30, 11)

    case = guided(33, 1.5, steps=1, block_length=21)
    params, regular = case.sampling_params(), case.sampling_params()
    params.logprobs = 2
    regular.structured_outputs = StructuredOutputsParams(regex=REGEX)
    regular.ignore_eos = False
    prompt = {"prompt_token_ids": list(case.prompt)}
    scored, matching = (o.outputs[0] for o in llada.generate([prompt] * 2, [params, regular], use_tqdm=False))
    ids = [*case.prompt, *[reference().mask_id] * 21]
    logits = GuidedReference(reference(), 1.5, 33).forward(ids, range(len(ids)), [])[33:]
    want = logits.log_softmax(-1)
    for i, (token, scores) in enumerate(zip(scored.token_ids, scored.logprobs, strict=True)):
        assert scores[token].logprob == pytest.approx(float(want[i, token]), abs=2e-3)
    check_regex(matching.token_ids)


def test_guidance_is_refused_by_name(llada: Any) -> None:
    for case, message in (
        (guided(9, -1.0), r"diffusion_cfg_scale=-1.0 must be a number from 0 to 100"),
        (guided(9, 2.0, cache=None), r"diffusion_cfg_scale=2.0 is not supported with diffusion_cache='dual'"),
        (guided(300, 2.0), r"diffusion_cfg_scale=2.0 computes prompt and answer, 321 tokens, twice"),
    ):
        with pytest.raises(ValueError, match=message):
            run(llada, [case])


GROWING: list[dict[str, Any]] = json.loads((GOLDEN / "daedal" / "cases.json").read_text())["cases"]
PUBLISHED_AS = {
    "initial_length": "initial_gen_length",
    "expansion_factor": "expansion_factor",
    "window_length": "block_length",
    "end_check_tokens": "eos_check_tokens",
    "end_threshold": "eos_confidence_threshold",
    "insert_end_threshold": "expand_eos_confidence_threshold",
    "insert_threshold": "low_conf_threshold",
    "end_token_id": "eos_token_id",
}


def growing(case: dict[str, Any], **how: Any) -> Case:
    """A case of DAEDAL's as a request: ``max_tokens`` bounds the answer."""
    params = case["params"]
    settings: dict[str, Any] = {
        "threshold": params["high_conf_threshold"],
        "cache": "none",
        "own": tuple((f"diffusion_{name}", params[key]) for name, key in PUBLISHED_AS.items()),
    }
    return Case(tuple(case["prompt_ids"]), params["max_gen_length"], "daedal", None, **settings | how)


def check_growing(results: list[dict[str, Any]]) -> None:
    """Ids, and so lengths, and forward passes are the published ones."""
    for result, case in zip(results, GROWING, strict=True):
        assert result["token_ids"] == case["output_ids"], case["name"]
        assert result["steps"] == case["num_forward"], case["name"]


def test_answers_that_grow(llada: Any) -> None:
    """DAEDAL's published cases, alone, and in one batch with other policies and guided requests."""
    check_growing([run(llada, [growing(case)])[0] for case in GROWING])
    plain, beside = mixed()[:6], guided(9, 1.5)
    results = run(llada, [*plain, *map(growing, GROWING), beside])
    check_results(results[:6], plain)
    check_growing(results[6:-1])
    assert results[-1] == run(llada, [beside])[0]
    assert len({len(result["token_ids"]) for result in results[6:-1]}) > 2


def test_growth_follows_the_seed(llada: Any) -> None:
    case = growing(GROWING[3], temperature=0.7, seed=5)
    alone = run(llada, [case])[0]
    assert run(llada, [*mixed()[:3], growing(GROWING[0]), case])[-1] == alone
    assert run(llada, [replace(case, seed=6)])[0] != alone


def test_growth_is_refused_by_name(llada: Any) -> None:
    case, why = growing(GROWING[0]), "is not supported with diffusion_algorithm='daedal'"

    def own(name: str, value: float) -> Case:
        return replace(case, own=((f"diffusion_{name}", value),))

    short = replace(own("initial_length", 1), prompt=(5,))
    for wrong, message in (
        (replace(case, max_tokens=65), "max_tokens=65 must be at most 64, the block length"),
        (
            replace(case, cache=None),
            f"diffusion_cache='dual' {why}",
        ),
        (
            replace(case, template=(7, -1)),
            f"diffusion_seed_canvas=.* {why}",
        ),
        (
            replace(case, max_steps=9),
            f"diffusion_max_steps=9 {why}",
        ),
        (
            replace(case, own=(("diffusion_initial_length", 0),)),
            "diffusion_initial_length=0 must be an integer",
        ),
        (replace(short, max_tokens=64), "diffusion_initial_length=1 must be more"),
        (
            replace(case, own=(("diffusion_end_token_id", 512),)),
            "diffusion_end_token_id=512 must be below 512",
        ),
        (own("cfg_scale", 1.0), f"diffusion_cfg_scale=1.0 {why}"),
        (own("end_tokens_last", True), f"diffusion_end_tokens_last=True {why}"),
        (own("end_token_id", 505), "diffusion_end_token_id=505 is the mask token"),
    ):
        with pytest.raises(ValueError, match=message):
            run(llada, [wrong])
    params = case.sampling_params()
    params.structured_outputs = StructuredOutputsParams(regex=REGEX)
    with pytest.raises(ValueError, match="diffusion_algorithm='daedal' is not supported with struct"):
        llada.generate({"prompt_token_ids": list(case.prompt)}, params, use_tqdm=False)
    params = case.sampling_params()
    params.logprobs = 1
    with pytest.raises(ValueError, match=f"logprobs=1 {why}"):
        llada.generate({"prompt_token_ids": list(case.prompt)}, params, use_tqdm=False)
    params = case.sampling_params()
    params.logprob_token_ids = [5]
    with pytest.raises(ValueError, match=rf"logprob_token_ids=\[5\] {why}"):
        llada.generate({"prompt_token_ids": list(case.prompt)}, params, use_tqdm=False)


def test_guidance_that_rounds_to_none_is_none(llada: Any) -> None:
    """What the workers keep in float32 is what the scheduler plans by."""
    case = guided(9, 0.0, algorithm="threshold", steps=None, threshold=0.5)
    assert run(llada, [guided(9, 1e-46, algorithm="threshold", steps=None, threshold=0.5)]) == run(
        llada, [case]
    )


@pytest.mark.every_mode
def test_methods_on_two_ranks() -> None:
    """Each rank has a share of the vocabulary, of a copy's logits too."""
    cases = guided_cases()
    requests = [*cases, *map(leaping, LEAPS), *map(growing, GROWING)]
    (results,) = run_elsewhere(
        [requests],
        env={"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        model=str(FOLDER),
        max_model_len=512,
        diffusion_config={"block_length": 64, "cache": OWN_MODE},
        tensor_parallel_size=2,
    )
    for result, case in zip(results, cases, strict=False):
        assert result["token_ids"] == expected_guided(case).output_ids, case
    check_leaps(results[5:14], LEAPS)
    check_growing(results[14:-1])


def test_sub_blocks_that_open_early(llada: Any) -> None:
    """d3LLM's published cases, alone, and in one batch with other policies; more against the reference."""
    cases = multi_block_published()
    check_published([run(llada, [case])[0] for case in cases])
    plain = mixed()[:6]
    results = run(llada, [*plain, *cases])
    check_results(results[:6], plain)
    check_published(results[6:])
    check_odd(run(llada, [d3llm(*one) for one in odd()]), reference())


def opening(number: int = 0, **how: Any) -> Case:
    """One of d3LLM's published cases, changed."""
    prompt, asked = of_published(PUBLISHED[number])
    return d3llm(prompt, asked, **how)


def test_sub_blocks_and_other_parameters(llada: Any) -> None:
    """Draws follow the seed whatever shares the batch; grammars, templates and log probabilities hold."""
    case = opening(temperature=0.7, seed=5)
    alone = run(llada, [case])[0]
    assert run(llada, [*mixed()[:3], opening(1), case])[-1] == alone
    assert run(llada, [replace(case, seed=6)])[0] != alone

    template = (7, *[-1] * 20, *range(20, 29), -1, 30)
    prompt, how = of_published(PUBLISHED[0])
    want = how.decode(reference(), list(prompt), list(template))
    filled = run(llada, [replace(opening(), template=template)])[0]
    assert filled["token_ids"] == want.output_ids
    assert filled["unmask_steps"] == want.unmask_step

    for number in (0, 1):
        params = opening(number).sampling_params()
        params.structured_outputs = StructuredOutputsParams(regex=REGEX)
        params.ignore_eos, params.logprobs = False, 1
        (output,) = llada.generate({"prompt_token_ids": list(prompt)}, params, use_tqdm=False)
        check_regex(output.outputs[0].token_ids)
        assert len(output.outputs[0].logprobs) == len(output.outputs[0].token_ids)


def test_an_end_token_ends_sub_blocks(llada: Any) -> None:
    """What is returned ends at a stop token; its log probabilities are those of the steps that wrote it."""
    case, (prompt, how) = PUBLISHED[1], of_published(PUBLISHED[1])
    assert how.end is not None
    end = case["output_ids"].index(how.end)
    stops = d3llm(prompt, how, stop_token_ids=(how.end,), eos_early_stop=True)
    params = stops.sampling_params()
    params.logprobs = 0
    (output,) = llada.generate({"prompt_token_ids": list(prompt)}, params, use_tqdm=False)
    completion = output.outputs[0]
    assert list(completion.token_ids) == case["output_ids"][: end + 1]
    assert completion.diffusion.steps == case["num_forward"]
    scores = [next(iter(entry.values())).logprob for entry in completion.logprobs]
    probabilities = [p for _, p in completion.diffusion.trace]
    assert [math.exp(score) for score in scores] == pytest.approx(probabilities[: end + 1], abs=1e-4)


def test_sub_blocks_are_refused_by_name(llada: Any) -> None:
    one, stopping = opening(), opening(1)
    for wrong, message in (
        (replace(one, max_tokens=65), "max_tokens=65 must be at most 64, the block length"),
        (replace(one, block_length=16), "max_tokens=32 must be at most 16, the block length"),
        (replace(one, steps=4), "diffusion_steps=4 has no effect with diffusion_algorithm='d3llm'"),
        (
            replace(one, own=(("diffusion_sub_block_length", 0),)),
            "diffusion_sub_block_length=0 must be an integer from 1",
        ),
        (
            replace(one, own=(("diffusion_early_stop", 2),)),
            "diffusion_early_stop=2 must be true or false",
        ),
        (
            replace(one, own=(("diffusion_end_token_id", 5),)),
            "diffusion_end_token_id=5 has no effect without diffusion_early_stop",
        ),
        (
            replace(stopping, own=(("diffusion_early_stop", 1), ("diffusion_end_token_id", 505))),
            "diffusion_end_token_id=505 is the mask token",
        ),
        (
            replace(stopping, own=(("diffusion_early_stop", 1), ("diffusion_end_token_id", 512))),
            "diffusion_end_token_id=512 must be below 512",
        ),
        (
            replace(stopping, template=(7, -1)),
            "diffusion_early_stop=True is not supported with a template",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(llada, [wrong])


@pytest.mark.parametrize("mode", MODES)
def test_open_blocks_are_watched(llada: Any, mode: str) -> None:
    case = Case(random_prompt(50, 21), 40, "low_confidence_static", 16, steps=5, cache=in_engine(mode))
    seen = watch(llada, list(case.prompt), case.sampling_params())
    check(seen)
    assert {canvas.begin: len(canvas.tokens) for canvas in seen.canvases} == {0: 16, 16: 16, 32: 8}
