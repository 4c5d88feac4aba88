# SPDX-License-Identifier: Apache-2.0
"""All algorithms and early exits through the engine, in one batch, against the reference."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.engine.cases import Case, random_prompt, reference, run
from tests.engine.conftest import IN_PROCESS, run_elsewhere
from tests.policies.odd import install
from tests.reference.algorithms import Request, decode
from tests.reference.sdar import Decoded
from vllm.v1.diffusion.policies import get_policy

HIERARCHICAL: dict[str, Any] = {"algorithm": "hierarchical", "threshold": 0.6, "low_threshold": 0.2}
EDIT: dict[str, Any] = {"algorithm": "edit", "threshold": 0.4, "edit_threshold": 0.3, "max_post_steps": 3}
CREDIT: dict[str, Any] = {"algorithm": "credit", "threshold": 0.5}
DYNAMIC: dict[str, Any] = {"algorithm": "low_confidence_dynamic", "threshold": 0.5}
STATIC: dict[str, Any] = {"algorithm": "low_confidence_static"}
SEQUENTIAL: dict[str, Any] = {"algorithm": "sequential", "steps": 3}
THRESHOLD: dict[str, Any] = {"algorithm": "threshold", "threshold": 0.3}

END_TOKENS = (490, 492)
"""Those of the checkpoint."""


def case(length: int, seed: int, how: dict[str, Any], block_length: int = 8, **given: Any) -> Case:
    """A greedy request with a random prompt."""
    return Case(random_prompt(length, seed), 24, block_length=block_length, **how | given)


BATCH = [
    case(13, 31, HIERARCHICAL),
    case(16, 32, HIERARCHICAL, 16),
    case(21, 33, CREDIT),
    case(32, 34, CREDIT, 16),
    case(9, 35, EDIT),
    case(40, 36, EDIT, 16),
    case(17, 37, EDIT, max_post_steps=0),
    case(11, 38, DYNAMIC),
    case(5, 39, SEQUENTIAL, 16),
    case(33, 40, THRESHOLD),
    case(24, 41, STATIC, max_steps=3),
    case(12, 42, STATIC, max_steps=1),
    case(19, 43, EDIT, 16, max_steps=4),
    case(20, 44, HIERARCHICAL, 16, exit_threshold=0.1),
    case(27, 45, STATIC, exit_threshold=0.2),
    case(15, 46, EDIT, exit_threshold=0.1),
]
RANDOM = [
    Case(random_prompt(14, 50), 26, "random", 8, steps=3, seed=7),
    Case(random_prompt(14, 50), 26, "random", 8, steps=3, seed=8),
    Case(random_prompt(32, 51), 32, "random", 16, seed=9),
]


@cache
def expected(wanted: Case) -> Decoded:
    """What the reference decodes."""
    names = {field.name for field in fields(Request)}
    given = {k: v for k, v in vars(wanted).items() if k in names and v is not None}
    if wanted.stop_token_ids:
        given["stop_token_ids"] = (*wanted.stop_token_ids, *END_TOKENS)
    return decode(reference(), Request(**{"steps": wanted.block_length or 0} | given))


def check(results: list[dict[str, Any]], cases: list[Case]) -> None:
    """Token for token and step for step."""
    for result, wanted in zip(results, cases, strict=True):
        want = expected(wanted)
        assert result["token_ids"] == want.output_ids, wanted
        assert result["unmask_steps"] == want.unmask_step, wanted
        assert result["steps"] == want.denoising_steps, wanted


def ended(wanted: Case) -> Case:
    """The same request with a stop token that its own output holds in the middle."""
    output = expected(wanted).output_ids
    return replace(wanted, stop_token_ids=(output[len(output) // 2],))


STOPS = [
    ended(one)
    for one in [
        *(BATCH[1], BATCH[2], BATCH[7], BATCH[8], BATCH[9]),
        *(case(16, 48, STATIC, 16), case(18, 49, STATIC, 16), case(32, 50, SEQUENTIAL, 16, steps=16)),
    ]
]


def test_mixed_and_alone(engine: Any) -> None:
    check(run(engine, BATCH), BATCH)
    for one in BATCH[1:7:2]:
        check(run(engine, [one]), [one])


def test_an_end_token_ends_its_block(engine: Any) -> None:
    """The same ids in fewer steps, among requests that go on."""
    early = [replace(one, eos_early_stop=True) for one in STOPS]
    check(run(engine, early + STOPS), early + STOPS)
    saved = [
        expected(b).denoising_steps - expected(a).denoising_steps for a, b in zip(early, STOPS, strict=True)
    ]
    assert min(saved) >= 0 and sum(saved) > 5
    assert [expected(a).output_ids for a in early] == [expected(b).output_ids for b in STOPS]


def test_random_keeps_its_schedule_and_its_draws(engine: Any) -> None:
    together = run(engine, RANDOM + BATCH[:4])[: len(RANDOM)]
    alone = [run(engine, [one])[0] for one in RANDOM]
    for a, b in zip(together, alone, strict=True):
        assert a["token_ids"] == b["token_ids"] and a["unmask_steps"] == b["unmask_steps"]
    assert alone[0]["unmask_steps"] != alone[1]["unmask_steps"]  # Another seed.
    # Two masks of the prompt's block, three whole blocks of 3, 3, 2.
    assert list(Counter(alone[0]["unmask_steps"][2:]).values()).count(3) == 6
    assert alone[0]["steps"] == 1 + 3 * 3
    assert sorted(alone[2]["unmask_steps"]) == list(range(32)) != alone[2]["unmask_steps"]


@pytest.mark.parametrize("async_scheduling", [pytest.param(False, marks=pytest.mark.every_mode), True])
def test_policies_of_other_packages(async_scheduling: bool, tmp_path: Path) -> None:
    """Those that fail end their own requests; those that stall are moved on; the engine lives."""
    prompt = random_prompt(16, 60)

    def by(algorithm: str, **given: Any) -> Case:
        return Case(prompt, 16, algorithm, 8, **given)

    paced = [by("paced"), by("paced", own=(("diffusion_pace", 3),))]
    failing = [
        by(name) for name in ("raises", "wrong_shape", "wrong_type", "forgetful", "rebinds", "overboosts")
    ]
    failing.append(by("paced", own=(("diffusion_pace", -1),)))
    stalling = [by("idle", steps=None), by("restless")]
    mixed, again = run_elsewhere(
        [[*paced, *failing, *stalling, *BATCH[:7]], [*BATCH[7:], *STOPS]],
        env=IN_PROCESS
        | {"PYTHONPATH": os.pathsep.join([str(install(tmp_path)), os.environ.get("PYTHONPATH", "")])},
        async_scheduling=async_scheduling,
        max_num_seqs=32,
    )
    of_paced, rest = mixed[: len(paced)], mixed[len(paced) :]
    for result, steps in zip(of_paced, (4, 3), strict=True):
        want = expected(by("sequential", steps=steps))
        assert (result["token_ids"], result["unmask_steps"]) == (want.output_ids, want.unmask_step)
    for result, failed in zip(rest, failing, strict=False):
        assert result["finish_reason"] == "error", failed
        assert f"diffusion_algorithm={failed.algorithm!r}: " in result["stop_reason"]
        method = {"overboosts": "boost", "forgetful": "make_memory"}.get(failed.algorithm, "select")
        assert f"{method}() raised " in result["stop_reason"] and "(request " in result["stop_reason"]
    idle, restless = rest[len(failing) : len(failing) + 2]
    # 8 steps asked for, 8 for the block's length, then one position a step.
    assert idle["steps"] == 2 * (8 + 8 + 8) and len(idle["token_ids"]) == 16
    assert restless["steps"] == 2 * (8 + 8 + 1) and len(restless["token_ids"]) == 16
    check(rest[len(failing) + 2 : -1], BATCH[:7])
    check(again[:-1], BATCH[7:] + STOPS)


def test_a_policy_may_not_promise_what_it_does_not_keep(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path)))
    with pytest.raises(ValueError, match=r"'planner'.* must not override steps_left"):
        get_policy("planner")
