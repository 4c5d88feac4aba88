# SPDX-License-Identifier: Apache-2.0
"""Requests that decide in several blocks at once, and what they must give."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tests.engine.cases import Case, random_prompt
from tests.engine.conftest import GOLDEN
from tests.reference.bidirectional import BidirectionalReference
from tests.reference.multi_block import D3llm
from tests.reference.sdar import Decoded

PUBLISHED: list[dict[str, Any]] = json.loads((GOLDEN / "multi-block" / "cases_d3llm.json").read_text())[
    "cases"
]


def d3llm(prompt: tuple[int, ...], how: D3llm, **more: Any) -> Case:
    """A request of the policy ``d3llm``; its answer is one block of the engine's."""
    own: list[tuple[str, Any]] = [
        ("diffusion_sub_block_length", how.block),
        ("diffusion_entropy_threshold", how.entropy),
        ("diffusion_block_add_threshold", how.add),
    ]
    if how.end is not None:
        own += [("diffusion_early_stop", True), ("diffusion_end_token_id", how.end)]
    settings: dict[str, Any] = {"cache": "none", "own": tuple(own)}
    return Case(prompt, how.length, "d3llm", None, **settings | more)


def of_published(case: dict[str, Any]) -> tuple[tuple[int, ...], D3llm]:
    """A published case: its prompt, and how it is decoded."""
    params = case["params"]
    end = params["eos_token_id"] if params["early_stop"] else None
    names = ("max_new_tokens", "block_size", "threshold", "block_add_threshold")
    length, block, entropy, add = (params[name] for name in names)
    return tuple(case["prompt_ids"]), D3llm(length, block, entropy, add, end)


def published() -> list[Case]:
    """The published cases as requests, with the threshold that decides nothing."""
    name, theirs = "diffusion_decoded_token_threshold", "decoded_token_threshold"
    cases = []
    for case in PUBLISHED:
        prompt, how = of_published(case)
        given = d3llm(prompt, how)
        cases.append(d3llm(prompt, how, own=(*given.own, (name, case["params"][theirs]))))
    return cases


def check_published(results: list[dict[str, Any]]) -> None:
    """Ids, also behind an end token, forwards, and where it is published the order of unmasking.

    The published count has a forward too many where filling what is behind an end token left no mask.
    """
    for result, case in zip(results, PUBLISHED, strict=True):
        assert result["token_ids"] == case["output_ids"], case["name"]
        assert result["steps"] == case["num_forward"], case["name"]
        if case["unmask_step"] is not None:
            assert result["unmask_steps"] == case["unmask_step"], case["name"]


ENDS = (42, 130, 19, 377, 331, 502, 281, 358, 358, 50, 42, 172)
"""Tokens that the requests of ``odd`` write in the middle of their answers."""


def odd() -> list[tuple[tuple[int, ...], D3llm]]:
    """Blocks of any length, short last ones, thresholds at their bounds, end tokens."""
    ways = [
        D3llm(40, 8, 1.0, 0.0),
        D3llm(27, 5, 1.3, 0.2),
        D3llm(33, 16, 0.0, 0.5),
        D3llm(50, 7, 0.7, 1.0),
        D3llm(16, 64, 1.2, 0.1),
        D3llm(30, 1, 1.0, 1.0),
        D3llm(48, 16, 1e30, 0.5),
        D3llm(1, 4, 1.0, 0.5),
    ]
    cases = [(random_prompt((1, 9, 40)[i % 3], 700 + i), how) for i, how in enumerate(ways)]
    for i in range(len(ENDS)):
        how = D3llm(40, (8, 16, 5)[i % 3], (0.8, 1.1, 0.5, 1.4)[i % 4], (0.1, 0.5)[i % 2], ENDS[i])
        cases.append((random_prompt(12, 720 + i), how))
    return cases


@cache
def expected(model: BidirectionalReference, prompt: tuple[int, ...], how: D3llm) -> Decoded:
    """What the plain reference gives."""
    return how.decode(model, list(prompt))


def check_odd(results: list[dict[str, Any]], model: BidirectionalReference) -> None:
    """Ids, order and steps are the reference's."""
    for result, (prompt, how) in zip(results, odd(), strict=True):
        want = expected(model, prompt, how)
        assert result["token_ids"] == want.output_ids, how
        assert result["steps"] == want.denoising_steps, how
        assert result["unmask_steps"] == want.unmask_step, how
