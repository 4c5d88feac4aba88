# SPDX-License-Identifier: Apache-2.0
"""What a request may ask of algorithms and early exits, and what the scheduler foresees with them."""

from __future__ import annotations

from typing import Any

import pytest

from vllm import SamplingParams
from vllm.v1.diffusion.config import MaskedDiffusionConfig
from vllm.v1.diffusion.core.plan import Outcome, RequestPlan
from vllm.v1.diffusion.modes import BlockGrid
from vllm.v1.diffusion.request.decoding import Decoding, foreseen_steps
from vllm.v1.diffusion.request.fields import ParameterError
from vllm.v1.diffusion.request.params import DiffusionParams, check_extra_args
from vllm.v1.diffusion.request.resolve import resolve_decoding

CONFIG = MaskedDiffusionConfig(
    block_length=8,
    algorithm="low_confidence_static",
    numbers={"threshold": 0.9, "edit_threshold": 0.7},
    mask_token_id=1,
)


def resolved(extra_args: dict[str, Any], **params: Any) -> Decoding:
    """A request's decoding; the keys without their prefix."""
    extra_args = {f"diffusion_{name}": value for name, value in extra_args.items()}
    return resolve_decoding(SamplingParams(extra_args=extra_args, **params), CONFIG)


def test_values_come_from_the_request_the_engine_and_the_policy() -> None:
    default = {"threshold": 0.9, "edit_threshold": 0.7, "max_post_steps": 16}
    assert resolved({"algorithm": "edit"}).values == default
    given = {"algorithm": "edit", "edit_threshold": 0.2, "max_post_steps": 0}
    assert resolved(given).values == {"threshold": 0.9, "edit_threshold": 0.2, "max_post_steps": 0}
    assert resolved({"algorithm": "hierarchical"}).values == {"threshold": 0.9, "low_threshold": 0.4}


def test_a_short_block_takes_a_step_for_every_token_unless_steps_are_asked_for() -> None:
    free, asked = resolved({"algorithm": "entropy"}), resolved({"algorithm": "entropy", "steps": 8})
    assert (free.steps, free.within(3).steps, foreseen_steps(free, 3, 3)) == (8, 3, 3)
    assert (asked.steps, asked.within(3).steps, foreseen_steps(asked, 3, 3)) == (8, 8, 8)
    at_once = resolved({"algorithm": "confidence_threshold"})
    assert (at_once.steps, at_once.within(3).steps) == (1, 1)


@pytest.mark.parametrize(
    ("extra_args", "params", "message"),
    [
        ({"edit_threshold": 0.5}, {}, "diffusion_edit_threshold=0.5 has no effect"),
        ({"algorithm": "edit", "edit_threshold": 1.5}, {}, "must be a number from 0 to 1"),
        ({"algorithm": "edit", "max_post_steps": -1}, {}, "diffusion_max_post_steps=-1 must be"),
        ({"algorithm": "edit", "steps": 4}, {}, "diffusion_steps=4 has no effect"),
        ({"algorithm": "edit", "low_threshold": 0.5}, {}, "diffusion_low_threshold=0.5 has no effect"),
        ({"algorithm": "edit", "eos_early_stop": True}, {}, "diffusion_eos_early_stop=True has no effect"),
        ({"eos_early_stop": True}, {"ignore_eos": True}, "has no effect with ignore_eos"),
        ({"max_steps": 0}, {}, "diffusion_max_steps=0 must be"),
        ({"max_steps": 2**40}, {}, "must be an integer from 1 to 32768"),
        ({"steps": 2**40}, {}, "must be an integer from 1 to 32768"),
        ({"exit_threshold": 2}, {}, "diffusion_exit_threshold=2 must be"),
        ({"algorithm": 3}, {}, "diffusion_algorithm=3 must be"),
        ({"pace": 3}, {}, "diffusion_pace has no effect"),
    ],
)
def test_refused_by_name(extra_args: dict[str, Any], params: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        resolved(extra_args, **params)


def test_edits_are_refused_under_a_grammar() -> None:
    from vllm.sampling_params import StructuredOutputsParams

    grammar = StructuredOutputsParams(regex="[0-9]+")
    with pytest.raises(ParameterError, match="diffusion_algorithm='edit' is not supported"):
        resolved({"algorithm": "edit"}, structured_outputs=grammar)


@pytest.mark.parametrize(
    ("extra_args", "foreseen"),
    [
        ({"steps": 4}, [Outcome.NOTHING] * 3 + [Outcome.FINISHES]),
        ({"steps": 4, "max_steps": 2}, [Outcome.NOTHING, Outcome.FINISHES]),
        ({"steps": 2, "max_steps": 4}, [Outcome.NOTHING, Outcome.FINISHES]),
        ({"algorithm": "random", "steps": 2}, [Outcome.NOTHING, Outcome.FINISHES]),
        ({"steps": 2, "exit_threshold": 0.9}, [Outcome.UNKNOWN] * 2),
        ({"steps": 2, "eos_early_stop": True}, [Outcome.UNKNOWN] * 2),
        ({"algorithm": "edit", "max_steps": 1}, [Outcome.UNKNOWN]),
    ],
)
def test_what_the_scheduler_foresees(extra_args: dict[str, Any], foreseen: list[Outcome]) -> None:
    decoding = resolved(extra_args, stop_token_ids=[1])
    plan = RequestPlan(decoding, BlockGrid(decoding.block_length))
    for want in foreseen:
        plan.push(8, known=0, denoises=True)
        assert plan.windows[-1].outcome is want


@pytest.mark.parametrize("key", ["anything", "diffusion_anything", 3])
def test_a_key_that_nobody_reads_is_refused_by_its_name(key: Any) -> None:
    with pytest.raises(ParameterError, match=f"^{key} has no effect on this model"):
        DiffusionParams.from_extra_args({key: 1})
        check_extra_args({key: 1}, frozenset(), CONFIG)


def test_the_refusal_names_what_the_loop_itself_reads() -> None:
    with pytest.raises(ParameterError, match=r"Known: cfg_scale, diffusion_algorithm"):
        check_extra_args({"scale": 1}, frozenset({"cfg_scale"}), CONFIG)
