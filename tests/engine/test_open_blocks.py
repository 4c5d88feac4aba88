# SPDX-License-Identifier: Apache-2.0
"""Several open blocks of a request: the engine's ids are those of a plain loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.engine import watching
from tests.engine.cases import Case, expected, random_prompt
from tests.engine.conftest import GOLDEN, IN_PROCESS, run_elsewhere, started
from tests.engine.golden import altered_configuration
from tests.reference.moe import Llada2Reference
from tests.reference.open_blocks import OpenDecoded, Way, decode
from tests.reference.sdar import SdarReference

MODELS = {"sdar": SdarReference, "llada2": Llada2Reference}
LOOP: dict[str, Any] = {"generation_loop": "multi_block_diffusion"}
HOLE = (7, -1, -1, 8, 9, *[-1] * 10, *range(40, 60), -1, -1, 10, *[-1] * 9)
"""A template that gives whole blocks."""


def case_of(way: Way, prompt: int, max_tokens: int, **params: Any) -> Case:
    """A request, whose prompt has ``prompt`` tokens."""
    return Case(
        prompt=random_prompt(prompt, 5),
        max_tokens=max_tokens,
        algorithm="multi_block",
        block_length=way.block_length,
        threshold=way.threshold,
        own=(
            ("diffusion_open_blocks", way.most),
            ("diffusion_add_block_threshold", way.add),
            ("diffusion_semi_complete_threshold", way.semi_complete),
        ),
        **params,
    )


WAYS = [
    (Way(16, 0.5), 33, 60),
    (Way(16, 0.8), 20, 40),
    (Way(8, 0.5), 32, 60),
    (Way(8, 0.8, add=0.5), 41, 41),
    (Way(8, 0.3, most=3, semi_complete=0.5), 7, 60),
    (Way(4, 0.5), 33, 50),
    (Way(4, 0.9, most=2, semi_complete=0.25), 1, 30),
    (Way(16, 0.5, most=1), 33, 60),
    (Way(8, 0.5, add=1.0), 33, 60),
    (Way(16, 0.6, add=0.0), 15, 70),
]


@cache
def model(name: str) -> SdarReference:
    return MODELS[name](GOLDEN / name)


@cache
def spoken(name: str, way: Way, prompt: int, max_tokens: int, **more: Any) -> OpenDecoded:
    """What the plain loop makes of a request."""
    return decode(model(name), random_prompt(prompt, 5), max_tokens, way, **more)


def check(result: dict[str, Any], want: OpenDecoded) -> None:
    """Ids, the step that unmasked each of them, and how many there were."""
    assert result["token_ids"] == want.output_ids
    assert result["unmask_steps"] == want.unmask_step
    assert result["steps"] == want.denoising_steps
    assert result["steps_per_block"] == want.steps_per_block


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("way", [Way(8, 0.5, most=1), Way(8, 0.5, add=1.0)])
def test_reference(name: str, way: Way) -> None:
    """One block at a time it is the loop of one block."""
    prompt = random_prompt(33, 5)
    one = model(name).generate(list(prompt), 60, 8, 8, "low_confidence_dynamic", threshold=0.5)
    many = spoken(name, way, 33, 60)
    assert (many.output_ids, many.unmask_step) == (one.output_ids, one.unmask_step)
    assert many.denoising_steps == one.denoising_steps and set(many.opened) == {1}
    assert max(spoken(name, replace(way, most=4, add=0.1), 33, 60).opened) == 4


def test_engine() -> None:
    """Alone, in a batch with other requests, in chunks, at the context's end, and short of KV blocks."""
    cases = [case_of(*one) for one in WAYS]
    wanted = [spoken("sdar", *one) for one in WAYS]
    way = Way(8, 0.5)
    filled = case_of(way, 33, len(HOLE), template=HOLE)
    stop = wanted[2].output_ids[21]
    stopped = case_of(way, 32, 60, stop_token_ids=(stop,))
    at_the_end = case_of(Way(16, 0.5), 203, 53)
    long = case_of(way, 150, 20)
    scored = replace(cases[0], logprobs=2)
    drawn = [case_of(way, 33, 40, temperature=1.0, top_k=40, seed=seed) for seed in (3, 3, 4)]
    others = [
        Case(random_prompt(33, 5), 40, "low_confidence_static", 8, steps=3),
        Case(random_prompt(41, 5), 40, "low_confidence_dynamic", 16, threshold=0.3),
    ]
    *alone, rest, mixed, drawn_in_batch, squeezed = run_elsewhere(
        [
            *([case] for case in cases),
            [filled, stopped, at_the_end],
            [scored, others[0], cases[5], others[1]],
            drawn,
            [*cases, *others, *cases[:3], long],
        ],
        env=IN_PROCESS,
        **LOOP,
        max_model_len=256,
        max_num_batched_tokens=130,
        block_size=32,
        num_gpu_blocks_override=21,
    )
    for (result, _), want in zip(alone, wanted, strict=True):
        check(result, want)
    for result, want in zip(
        rest[:3],
        (
            spoken("sdar", way, 33, len(HOLE), template=HOLE),
            spoken("sdar", way, 32, 60, stop_ids=(stop,)),
            spoken("sdar", Way(16, 0.5), 203, 53, context=256),
        ),
        strict=True,
    ):
        check(result, want)
    assert len(rest[1]["token_ids"]) < 60 and rest[1]["token_ids"][-1] == stop
    assert mixed[-1]["vllm:num_preemptions"] == 0
    check(mixed[0], wanted[0])
    check(mixed[2], wanted[5])
    certain = [math.exp(value) for value in mixed[0]["logprobs"]]
    assert certain == pytest.approx(mixed[0]["probabilities"], abs=1e-4) and len(certain) == 60
    first, second, third = (result["token_ids"] for result in drawn_in_batch[:3])
    assert first == second != third

    for result, case in zip([mixed[1], mixed[3]], others, strict=True):
        assert result["token_ids"] == expected(case).output_ids
    # A preempted request would begin its open blocks again, and those behind the first had made progress.
    assert squeezed[-1]["vllm:num_preemptions"] == 0
    results, ways = squeezed[:-1], [*WAYS, None, None, *WAYS[:3], (way, 150, 20)]
    for result, one, case in zip(results, ways, [*cases, *others, *cases[:3], long], strict=True):
        spoken_or_exact: Any = expected(case) if one is None else spoken("sdar", *one)
        assert result["token_ids"] == spoken_or_exact.output_ids, case


def test_mixture_of_experts() -> None:
    """LLaDA2, alone and in a batch."""
    some = [WAYS[i] for i in (0, 2, 3, 5, 7)]
    cases, wanted = [case_of(*one) for one in some], [spoken("llada2", *one) for one in some]
    alone, batch = run_elsewhere(
        [cases[:1], cases], env=IN_PROCESS, **LOOP, model=str(GOLDEN / "llada2"), max_model_len=256
    )
    for result, want in zip([alone[0], *batch[:-1]], [wanted[0], *wanted], strict=True):
        check(result, want)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An engine's that opens several blocks; nothing is started."""
    return altered_configuration(GOLDEN / "sdar", tmp_path_factory.mktemp("open"), LOOP)


def admit(configuration: Any, own: dict[str, Any], **params: Any) -> None:
    """Has a request checked as the front end does."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.generation_loop.registry import get_generation_loop

    extra = {"diffusion_algorithm": "multi_block"} | {f"diffusion_{name}": own[name] for name in own}
    if "structured_outputs" in params:
        params["structured_outputs"] = StructuredOutputsParams(**params["structured_outputs"])
    made = SamplingParams(max_tokens=8, detokenize=False, extra_args=extra, **params)
    get_generation_loop(configuration).validate_params(made, configuration)


@pytest.mark.parametrize(
    ("own", "params", "message"),
    [
        ({"open_blocks": 5}, {}, "diffusion_open_blocks=5 must be an integer from 1 to 4"),
        ({"open_blocks": 0}, {}, "diffusion_open_blocks=0 must be an integer from 1 to 4"),
        ({"semi_complete_threshold": 1.5}, {}, "semi_complete_threshold=1.5 must be a number from 0 to 1"),
        ({"steps": 3}, {}, "diffusion_steps=3 has no effect with"),
        ({"exit_threshold": 0.9}, {}, "diffusion_exit_threshold=0.9 is not supported with"),
        ({"max_steps": 3}, {}, "diffusion_max_steps=3 is not supported with"),
        ({"eos_early_stop": True}, {}, "diffusion_eos_early_stop=True is not supported with"),
        ({}, {"structured_outputs": {"regex": "a"}}, "structured_outputs .* are not supported with"),
        ({"algorithm": "low_confidence_static", "open_blocks": 2}, {}, "open_blocks=2 has no effect with"),
        ({"algorithm": "self_speculation"}, {}, "needs an engine that verifies drafts"),
        ({}, {"prompt_logprobs": 0}, "it was not tried on an engine that opens several blocks"),
    ],
)
def test_refused(configuration: Any, own: dict[str, Any], params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        admit(configuration, own, **params)


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    """An engine of golden SDAR that opens several blocks."""
    yield from started(**LOOP, async_scheduling=False)


@pytest.mark.parametrize(("way", "prompt", "max_tokens"), [WAYS[0], WAYS[3], WAYS[4]])
def test_what_a_stream_shows(engine: Any, way: Way, prompt: int, max_tokens: int) -> None:
    """All blocks that may be open, behind each step; the tokens stay what they are."""
    case = case_of(way, prompt, max_tokens)
    seen = watching.watch(engine, list(case.prompt), case.sampling_params())
    watching.check(seen)
    assert max(len(canvas.tokens) for canvas in seen.canvases) > way.block_length
    plain = watching.watch(engine, list(case.prompt), case.sampling_params(), stream=False)
    assert list(chain(*seen.deltas)) == list(chain(*plain.deltas))


def test_only_an_engine_that_opens_several_takes_it(tmp_path: Path, configuration: Any) -> None:
    admit(configuration, {})
    admit(configuration, {"open_blocks": 1})
    other = altered_configuration(GOLDEN / "sdar", tmp_path)
    with pytest.raises(ValueError, match="several blocks of a request: start it with --generation-loop mul"):
        admit(other, {})
    with pytest.raises(ValueError, match="needs an engine that opens several blocks"):
        altered_configuration(GOLDEN / "sdar", tmp_path, {"diffusion_config": {"algorithm": "multi_block"}})


def test_default_of_the_engine(tmp_path: Path) -> None:
    """``--diffusion-config`` says how many blocks are open where a request does not."""
    from vllm.v1.diffusion.config import resolve_diffusion_config
    from vllm.v1.diffusion.request.resolve import resolve_decoding

    given = {"algorithm": "multi_block", "open_blocks": 2, "block_length": 8}
    config = altered_configuration(GOLDEN / "sdar", tmp_path, LOOP | {"diffusion_config": given})
    assert resolve_decoding(None, resolve_diffusion_config(config)).open_blocks == 2
    assert config.num_speculative_tokens == 32


@pytest.mark.parametrize(
    ("checkpoint", "settings", "message"),
    [
        ("sdar", {"async_scheduling": True}, "async_scheduling=True is not supported with several open bl"),
        ("sdar", {"pipeline_parallel_size": 2}, "pipeline_parallel_size > 1 is not supported with several"),
        ("sdar", {"max_num_batched_tokens": 31, "max_model_len": 64}, "max_num_batched_tokens=31 is too"),
        ("sdar", {"diffusion_config": {"block_length": 2048}, "max_model_len": 4096}, "block_length=2048 is"),
        ("llada22", {}, "generation_loop='multi_block_diffusion' is not for this model"),
        ("llada", {}, "generation_loop='multi_block_diffusion' is not for this model"),
    ],
)
def test_refused_engines(tmp_path: Path, checkpoint: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        altered_configuration(GOLDEN / checkpoint, tmp_path, LOOP | settings)
