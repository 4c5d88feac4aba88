# SPDX-License-Identifier: Apache-2.0
"""Admission leaves the caller's ``SamplingParams`` as they are: one object may serve many requests."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.engine.admission import admitted, processor
from vllm import SamplingParams

TEMPLATE = {"diffusion_infill": "t1 t2<|hole:4|>t3"}
SEED = {"diffusion_seed_canvas": [1, 508, 508, 2], "diffusion_pinned": [0, 3]}
FAMILIES = ("sdar", "llada")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "given",
    [
        {"extra_args": TEMPLATE},
        {"extra_args": SEED},
        {"stop_token_ids": [490]},
        {"extra_args": {"diffusion_steps": 4}, "bad_words": ["t1 t2"], "min_tokens": 2},
        {},
    ],
    ids=["text", "ids", "stop", "bad words", "nothing"],
)
def test_nothing_is_written_to_them(family: str, given: dict[str, Any]) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, **copy.deepcopy(given))
    before = copy.deepcopy(params)
    first, again = admitted(family, params), admitted(family, params)
    assert params == before
    assert first is not params and first == again
    if "extra_args" in given and "diffusion_steps" not in given["extra_args"]:
        asked = first.extra_args
        assert asked is not None
        template = asked.get("diffusion_infill_ids") or asked["diffusion_seed_canvas"]
        assert first.ignore_eos and first.max_tokens == len(template)


@pytest.mark.parametrize("family", FAMILIES)
def test_reuse_with_and_without_a_template(family: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=20)
    plain = admitted(family, params)
    for template in (TEMPLATE, SEED, {"diffusion_infill": "t9<|hole:2|>"}):
        params.extra_args = dict(template)
        held = admitted(family, params)
        assert held.max_tokens != 20 and params.extra_args == template
    params.extra_args = None
    assert admitted(family, params) == plain


def test_a_stop_token_of_llada_ends_this_request_alone() -> None:
    params = SamplingParams(temperature=0, max_tokens=20)
    ends = processor("llada").model_config.try_get_generation_config()["eos_token_id"]
    params.stop_token_ids = [ends] if isinstance(ends, int) else list(ends)
    assert admitted("llada", params).ignore_eos
    assert not params.ignore_eos
