# SPDX-License-Identifier: Apache-2.0
"""What a request may ask of DiffusionGemma, alone and with others in a batch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import GOLDEN, started
from tests.engine.watching import watch

FOLDER: Path = GOLDEN / "diffusion_gemma"
PROMPT = [2, 176, 51, 121, 196, 327, 255]
WIDTH, STEPS = 16, 8


@pytest.fixture(scope="module")
def llm() -> Iterator[Any]:
    """An engine with the checkpoint's own settings."""
    yield from started(model=str(FOLDER), diffusion_config=None, max_model_len=512)


def asked(own: dict[str, Any] | None = None, **params: Any) -> Any:
    """Sampling parameters; ``own`` are those of diffusion, without their prefix."""
    from vllm import SamplingParams

    extra = {f"diffusion_{name}": value for name, value in {"steps": STEPS, **(own or {})}.items()}
    common = {"seed": 1, "max_tokens": 2 * WIDTH, "ignore_eos": True}
    return SamplingParams(**common | params, extra_args=extra)


def run(llm: Any, *requests: Any, prompt: list[int] = PROMPT) -> list[Any]:
    prompts = [{"prompt_token_ids": prompt}] * len(requests)
    return [output.outputs[0] for output in llm.generate(prompts, list(requests), use_tqdm=False)]


def ids(llm: Any, *requests: Any) -> list[list[int]]:
    return [list(output.token_ids) for output in run(llm, *requests)]


def grammar(**kind: Any) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(**kind)


TEMPLATE = {"seed_canvas": [5, 6, 7, 8] * 6, "pinned": [0, 1, 2, 20, 23]}
KINDS: dict[str, dict[str, Any]] = {
    "published": {},
    "greedy": {"temperature": 0.0},
    "hotter": {"temperature": 1.5, "seed": 7},
    "min_p": {"min_p": 0.2},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.3},
    "allowed": {"allowed_token_ids": [10, 11, 12]},
    "biased": {"logit_bias": {7: 100.0}},
    "penalties": {"repetition_penalty": 1.5, "presence_penalty": 0.5},
    "logprobs": {"logprobs": 2},
    "narrow": {"own": {"block_length": 5}},
    "template": {"own": TEMPLATE},
    "traced": {"own": {"trace": True}},
    "schedule": {"own": {"t_max": 1.5, "t_min": 0.1, "entropy_bound": 2.0, "stability_threshold": 0}},
    "grammar": {"structured_outputs": {"regex": "(t1[0-9]+){5,20}"}, "ignore_eos": False},
}


def of_kind(kind: str) -> Any:
    given = dict(KINDS[kind])
    if "structured_outputs" in given:
        given["structured_outputs"] = grammar(**given["structured_outputs"])
    return asked(given.pop("own", None), **given)


def test_each_kind_alone_and_all_at_once(llm: Any) -> None:
    """What shares the batch changes nothing of a request; in float32 to the bit."""
    alone = [ids(llm, of_kind(kind))[0] for kind in KINDS]
    assert ids(llm, *map(of_kind, KINDS)) == alone
    assert len({tuple(each) for each in alone}) > 10


def test_draws_follow_the_seed(llm: Any) -> None:
    one, again, other = ids(
        llm, asked(temperature=2.0), asked(temperature=2.0), asked(temperature=2.0, seed=2)
    )
    assert one == again != other


def test_a_greedy_request_still_starts_from_noise(llm: Any) -> None:
    """Temperature 0 takes the most probable tokens for the drawn ones; the canvas is drawn all the same."""
    first, second = ids(llm, asked(temperature=0), asked(temperature=0, seed=2))
    assert first != second


def test_tokens_are_allowed_biased_and_banned(llm: Any) -> None:
    plain = ids(llm, asked())[0]
    allowed, biased, banned = ids(
        llm,
        asked(allowed_token_ids=[10, 11, 12]),
        asked(logit_bias={7: 100.0}),
        asked(logit_bias=dict.fromkeys(plain, -100.0)),
    )
    assert set(allowed) <= {10, 11, 12} and set(biased) == {7}
    assert not set(banned) & set(plain)


def test_end_tokens_count_in_the_finished_canvas(llm: Any) -> None:
    plain = ids(llm, asked())[0]
    end = {"stop_token_ids": [plain[3]], "ignore_eos": False}
    stopped, late = run(llm, asked(**end), asked(**end, min_tokens=20))  # type: ignore[arg-type]
    assert list(stopped.token_ids) == plain[:4] and stopped.finish_reason == "stop"
    assert plain[3] not in late.token_ids[:20] and len(late.token_ids) > 20


def test_bad_words(llm: Any) -> None:
    """A word of two tokens would be written in one step: the last one."""
    plain = ids(llm, asked())[0]
    one, two = f"t{plain[0]}", f"t{plain[4]} t{plain[5]}"
    without, apart = ids(llm, asked(bad_words=[one]), asked(bad_words=[two]))
    assert plain[0] not in without
    assert (plain[4], plain[5]) not in set(pairwise(apart))


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ({"regex": "(t1[0-9]+){5,20}"}, r"(t1[0-9]+){5,20}"),
        ({"regex": "(t3|t4){18}t5"}, r"(t3|t4){18}t5"),
        ({"choice": ["t10t11", "t12"]}, r"t10t11|t12"),
    ],
    ids=("many", "longer than a canvas", "choice"),
)
def test_grammars(llm: Any, kind: dict[str, Any], pattern: str) -> None:
    for temperature in (0.0, 1.0):
        output = run(
            llm, asked(temperature=temperature, structured_outputs=grammar(**kind), ignore_eos=False)
        )[0]
        assert output.finish_reason == "stop"
        assert re.fullmatch(pattern, output.text.replace(" ", ""))


def test_logprobs_are_the_last_step_s(llm: Any) -> None:
    output = run(llm, asked(logprobs=3))[0]
    assert list(output.token_ids) == ids(llm, asked())[0]
    for token, entries in zip(output.token_ids, output.logprobs, strict=True):
        # The most probable tokens are emitted.
        assert entries[token].rank == 1
        assert entries[token].logprob == max(entry.logprob for entry in entries.values()) <= 0


def test_a_trace_says_when_a_token_was_there_to_stay(llm: Any) -> None:
    trace = run(llm, asked({"trace": True}))[0].diffusion.trace
    steps = [step for step, _ in trace]
    assert len(steps) == 2 * WIDTH and all(0 <= p <= 1 for _, p in trace)
    assert min(steps) >= 0 and max(steps[:WIDTH]) < STEPS <= max(steps[WIDTH:]) + 1 <= 2 * STEPS


def test_max_steps_and_early_exits(llm: Any) -> None:
    for own in ({"max_steps": 2}, {"exit_threshold": 0.0}, {}):
        made = run(llm, asked(own))[0].diffusion.steps
        assert made == {"max_steps": 4, "exit_threshold": 2}.get(next(iter(own), ""), 2 * STEPS)


def test_templates(llm: Any) -> None:
    """Pinned positions stay; a seed without pins is what the canvas begins with, noise drawn or not."""
    pinned, infilled, seeded, otherwise = ids(
        llm,
        asked(TEMPLATE),
        asked({"infill": "t8 t9<|hole:4|>t10<|hole:3|>"}),
        asked({"seed_canvas": list(range(100, 116)), "max_steps": 1}),
        asked({"seed_canvas": list(range(100, 116)), "max_steps": 1}, seed=2),
    )
    assert len(pinned) == 24 and [pinned[i] for i in (0, 1, 2, 20, 23)] == [5, 6, 7, 5, 8]
    assert infilled[:2] == [8, 9] and infilled[6] == 10 and len(infilled) == 10
    assert seeded == otherwise and len(seeded) == 16


def test_a_canvas_is_read_as_upstream_s_decisions_do(llm: Any) -> None:
    """The keys of its structured decisions: one step, a part of the canvas, listed log probabilities."""
    canvas = [77, 106, *[0] * 14]
    read = {"seed_canvas": canvas, "canvas_length": 16, "max_steps": 1, "read_only": True}
    listed = [20, 30, 40]
    plain, among = run(
        llm,
        asked(read, max_tokens=2, logprob_token_ids=listed),
        asked(read | {"constrained": True}, max_tokens=2, logprob_token_ids=listed),
    )
    assert len(plain.token_ids) == len(among.token_ids) == 2
    assert set(among.token_ids) <= set(listed)
    for free, held in zip(plain.logprobs, among.logprobs, strict=True):
        mass = sum(math.exp(free[token].logprob) for token in listed)
        assert mass < 1
        for token in listed:
            assert held[token].logprob == pytest.approx(free[token].logprob - math.log(mass), abs=1e-4)


def test_the_context_ends_in_a_canvas(llm: Any) -> None:
    long = [PROMPT[i % 7] for i in range(505)]
    output = run(llm, asked(max_tokens=100), prompt=long)[0]
    assert len(output.token_ids) == 512 - 505 and output.finish_reason == "length"


def test_a_cached_prefix_changes_nothing(llm: Any) -> None:
    """Known tokens pass causally, whatever the width of the canvas behind them."""
    long = [PROMPT[i * i % 7] for i in range(300)]
    fresh, _ = run(llm, asked(), asked({"block_length": 5}), prompt=long)
    cached = llm.generate([{"prompt_token_ids": long}], [asked()], use_tqdm=False)[0]
    assert cached.num_cached_tokens >= 256
    assert list(cached.outputs[0].token_ids) == list(fresh.token_ids)


@pytest.mark.parametrize(
    ("own", "params", "named"),
    [
        ({"algorithm": "entropy"}, {}, "diffusion_algorithm='entropy' is not for this model"),
        ({"t_max": 0.3}, {}, "diffusion_t_max=0.3 must leave t_max=0.3 above t_min=0.4"),
        ({"t_min": 0.9}, {}, "diffusion_t_min=0.9 must leave"),
        ({"entropy_bound": 0}, {}, "diffusion_entropy_bound=0 must be a number above 0"),
        ({"confidence_threshold": 0}, {}, "diffusion_confidence_threshold=0 must be"),
        ({"stability_threshold": 0.5}, {}, "diffusion_stability_threshold=0.5 must be an integer"),
        ({"threshold": 0.5}, {}, "diffusion_threshold=0.5 has no effect"),
        ({"block_length": 17}, {}, "diffusion_block_length=17 must not exceed"),
        ({"canvas_length": 17}, {}, "diffusion_block_length=17 must not exceed"),
        (
            {"canvas_length": 4, "block_length": 5},
            {},
            "contradicts diffusion_block_length=",
        ),
        ({"eos_early_stop": True}, {}, "diffusion_eos_early_stop=True has no effect"),
        ({"cache": "dual"}, {}, "diffusion_cache='dual' has no effect"),
        ({"constrained": True}, {}, "diffusion_constrained=True needs logprob_token_ids"),
        ({}, {"prompt_logprobs": 1}, "prompt_logprobs=1 is not supported: open positions hold random"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_has_no_effect_is_refused_by_name(llm: Any, own: Any, params: Any, named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        run(llm, asked(own, **params))


def test_random_tokens_are_watched_until_the_block_ends(llm: Any) -> None:
    """Every position is open, and shows its token, until all are unmasked at once."""
    seen = watch(llm, PROMPT, asked())
    assert [canvas.step for canvas in seen.canvases] == list(range(2 * STEPS))
    for canvas in seen.canvases:
        last = canvas.step % STEPS == STEPS - 1
        assert canvas.open == ([] if last else list(range(WIDTH)))
        assert min(canvas.tokens) >= 0
    ends = [canvas.tokens for canvas in seen.canvases if not canvas.open]
    assert ends == seen.deltas
    assert len({tuple(canvas.tokens) for canvas in seen.canvases}) > 2
