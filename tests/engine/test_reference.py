# SPDX-License-Identifier: Apache-2.0
"""Token for token as the plain reference, whatever the shapes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.engine.cases import (
    ALGORITHMS,
    LENGTHS,
    Case,
    assert_as_reference,
    forced,
    mixed_batch,
    random_prompt,
    run,
)
from tests.engine.conftest import GOLDEN


@pytest.mark.parametrize("block_length", [4, 8, 16])
def test_one_at_a_time(engine: Any, block_length: int) -> None:
    for i, length in enumerate(LENGTHS):
        for algorithm in (ALGORITHMS[i % 6], ALGORITHMS[(i + 2) % 6], ALGORITHMS[4]):
            case = Case(random_prompt(length, 1), 21, block_length=block_length, **algorithm)
            assert_as_reference(run(engine, [case]), [case])


def test_mixed_batch(engine: Any) -> None:
    cases = mixed_batch()
    assert_as_reference(run(engine, cases), cases)


def test_a_mask_token_in_the_prompt_is_text(engine: Any) -> None:
    mask = 508
    for length in (3, 16, 37):
        prompt = list(random_prompt(length, 3))
        prompt[length // 2] = prompt[-1] = mask
        case = Case(tuple(prompt), 12, "low_confidence_static", 8)
        assert_as_reference(run(engine, [case]), [case])


@pytest.mark.parametrize("position", [0, 5, 15, 16])
def test_stop_token_inside_a_block(engine: Any, position: int) -> None:
    free = Case(random_prompt(33, 4), 24, "low_confidence_static", 8)
    tokens = run(engine, [free])[0]["token_ids"]
    stop = tokens[position]
    case = Case(free.prompt, 24, "low_confidence_static", 8, stop_token_ids=(stop,))
    result = run(engine, [case])[0]
    assert result["token_ids"] == tokens[: tokens.index(stop) + 1]
    assert_as_reference([result], [case])


def test_every_end_token_ends_a_response(engine: Any) -> None:
    """The checkpoint's generation config names two."""
    ends = json.loads((GOLDEN / "sdar" / "generation_config.json").read_text())["eos_token_id"]
    assert len(ends) == 2
    assert [forced(engine, end) for end in ends] == [[end] for end in ends]
    assert [forced(engine, end, ignore_eos=True) for end in ends] == [[end] * 20 for end in ends]
