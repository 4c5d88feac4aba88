# SPDX-License-Identifier: Apache-2.0
"""DreamOn: its published code gave these ids; the engine must give the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.conftest import GOLDEN, started
from tests.engine.golden import cases_of, generate
from tests.engine.watching import watch

FOLDER = GOLDEN / "dreamon"
EVERY = cases_of(FOLDER)
CASES = [case for case in EVERY if not case["params"]["pad_delete_to_right"]]
"""The others show a mistake of the published code, which deletes the whole hole."""


@pytest.fixture(scope="module")
def dreamon() -> Iterator[Any]:
    """An engine of the folder, with no other word on what it is."""
    yield from started(model=str(FOLDER), diffusion_config=None)


def asked(template: list[int], room: int | None, **own: Any) -> Any:
    """A request's parameters."""
    from vllm import DiffusionParams  # type: ignore[attr-defined]  # lazy

    given = DiffusionParams(infill_ids=template, trace=True, **own)
    return given.sampling_params(temperature=0, max_tokens=room, detokenize=False)


def of_golden(case: dict[str, Any]) -> tuple[list[int], Any]:
    """A golden case as prompt and request."""
    given, ids = case["params"], case["prompt_ids"]
    begin, end = given["prefix"], given["prefix"] + given["masks"]
    room = given["max_new_tokens"] + given["suffix"]
    how = {"algorithm": given["alg"], "expand_budget": given["expand_budget"]}
    return ids[:begin], asked([-1] * given["masks"] + ids[end:], room, **how)


def check(completion: Any, case: dict[str, Any]) -> None:
    """The whole answer and its forwards are the published ones."""
    assert list(completion.token_ids) == case["full_canvas_ids"][case["params"]["prefix"] :], case["name"]
    assert completion.diffusion.steps == case["num_forward"], case["name"]


def test_alone(dreamon: Any) -> None:
    for case in CASES:
        check(generate(dreamon, [of_golden(case)])[0], case)


def test_batched(dreamon: Any) -> None:
    twice = CASES + CASES[::-1]
    for completion, case in zip(generate(dreamon, [of_golden(c) for c in twice]), twice, strict=True):
        check(completion, case)


MASK, EXPAND, DELETE = 508, 509, 490


def biased(template: list[int], room: int, token: int, **own: Any) -> Any:
    """A request whose model prefers one token."""
    how = asked(template, room, **own)
    how.logit_bias = {token: 100.0}
    return how


def test_holes_grow_as_far_as_they_may(dreamon: Any) -> None:
    """A model that always expands: up to the room, or as often as it may; then it writes."""
    prompt, suffix = [490, 3, 4, 5], [6, 7]
    wide, short = generate(
        dreamon,
        [
            (prompt, biased([-1, -1, *suffix], 9, EXPAND)),
            (prompt, biased([-1, -1, *suffix], 9, EXPAND, expand_budget=3)),
        ],
    )
    assert (len(wide.token_ids), len(short.token_ids)) == (9, 7)
    for completion in (wide, short):
        assert list(completion.token_ids[-2:]) == suffix
        assert not {MASK, EXPAND, DELETE} & set(completion.token_ids[:-2])


def test_holes_of_which_all_is_deleted(dreamon: Any) -> None:
    """Both holes go; without anything else an answer is one end token."""
    prompt = [490, 3, 4, 5]
    some, nothing = generate(
        dreamon,
        [(prompt, biased([-1, 8, -1, -1, 9], 5, DELETE)), (prompt, biased([-1, -1], 2, DELETE))],
    )
    assert list(some.token_ids) == [8, 9]
    assert list(nothing.token_ids) == [DELETE]
    assert [some.finish_reason, nothing.finish_reason] == ["length", "length"]


def test_without_a_template(dreamon: Any) -> None:
    """An answer begins as long as it may become."""
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=12, detokenize=False)
    (completion,) = generate(dreamon, [([490, 123, 93, 22], how)])
    assert 1 <= len(completion.token_ids) <= 12
    assert not {MASK, EXPAND} & set(completion.token_ids)


def test_how_long_an_answer_may_become(dreamon: Any) -> None:
    """64 tokens more than the template where nothing was said; no shorter than it."""
    (completion,) = generate(dreamon, [([490, 3], biased([-1, 5], None, EXPAND))])  # type: ignore[arg-type]
    assert 32 < len(completion.token_ids) <= 2 + 64  # It deletes too.
    with pytest.raises(ValueError, match="max_tokens=1 must not be below the 2 tokens"):
        asked([-1, 5], 1)


@pytest.mark.parametrize(
    ("own", "params", "message"),
    [
        ({"algorithm": "origin"}, {}, "diffusion_algorithm='origin' is not supported on this model"),
        ({"max_steps": 3}, {}, "diffusion_max_steps=3 is not supported by this model, whose tokens move"),
        ({"block_length": 4}, {}, "diffusion_block_length=4 is not supported by this model"),
        ({"cache": "dual"}, {}, "diffusion_cache='dual' is not supported by this model"),
        ({}, {"logprobs": 1}, "logprobs=1 is not supported by this model"),
        ({"infill_ids": [-1, EXPAND]}, {}, "holds the id that expands, 509"),
    ],
)
def test_refused(dreamon: Any, own: dict[str, Any], params: dict[str, Any], message: str) -> None:
    from vllm import DiffusionParams  # type: ignore[attr-defined]  # lazy

    how = DiffusionParams(**{"infill_ids": [-1, 5]} | own).sampling_params(max_tokens=8, **params)
    with pytest.raises(ValueError, match=message):
        generate(dreamon, [([490, 3], how)])


def test_other_models_have_no_budget() -> None:
    from vllm import SamplingParams
    from vllm.v1.diffusion.config import MaskedDiffusionConfig
    from vllm.v1.diffusion.request.resolve import resolve_decoding

    own: dict[str, Any] = {"threshold": 0.5}
    config = MaskedDiffusionConfig(block_length=4, algorithm="threshold", mask_token_id=9, **own)
    how = SamplingParams(extra_args={"diffusion_expand_budget": 4})
    with pytest.raises(ValueError, match="diffusion_expand_budget=4 has no effect on this model, but on Dre"):
        resolve_decoding(how, config)


def test_holes_are_watched_as_they_grow(dreamon: Any) -> None:
    """Of whatever length it is, a canvas is shown whole, and the last one is the answer."""
    case = next(case for case in CASES if len(case["full_canvas_ids"]) != len(case["prompt_ids"]))
    prompt, params = of_golden(case)
    seen = watch(dreamon, prompt, params)
    assert seen.deltas == [case["full_canvas_ids"][len(prompt) :]]
    assert [canvas.step for canvas in seen.canvases] == list(range(case["num_forward"]))
    assert (seen.canvases[-1].tokens, seen.canvases[-1].open) == (seen.deltas[0], [])
    assert len({len(canvas.tokens) for canvas in seen.canvases}) > 1
