# SPDX-License-Identifier: Apache-2.0
"""One record per parameter: a request, the operator and the command line are held to the same range."""

from __future__ import annotations

import inspect
import json
import pickle
from typing import Annotated, Any, ClassVar

import pytest
import torch
from pydantic import Field

from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.diffusion.config import MaskedDiffusionConfig
from vllm.v1.diffusion.families import FAMILIES
from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.plugins import (
    THRESHOLD,
    UNMASKING_POLICY_API,
    Boost,
    CanvasView,
    DiffusionParams,
    Parameter,
    PositionStats,
    Rewrite,
    ScheduledPolicy,
    UnmaskingPolicy,
)
from vllm.v1.diffusion.policies import get_policy
from vllm.v1.diffusion.policies.scheduled.linear_time import LinearTimePolicy
from vllm.v1.diffusion.request.fields import ParameterError
from vllm.v1.diffusion.request.params import fields, parameters
from vllm.v1.diffusion.request.resolve import resolve_decoding

CONFIG = MaskedDiffusionConfig(block_length=8, algorithm="low_confidence_static", mask_token_id=1)
HERE = __name__
HIGH_ENOUGH = Annotated[float, Field(le=1)]


def selects(self: Any, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
    return canvas.masked


class Paced(UnmaskingPolicy):
    """A plug-in with numbers of its own, one of which it has in common with built-in policies."""

    numbers: ClassVar = {
        "threshold": THRESHOLD,
        "pace": Parameter(
            "Positions per step.", Annotated[int, Field(ge=1, le=9)], default=2, aliases=("speed",)
        ),
        "must": Parameter("A number without a default."),
    }
    select = selects


PACED = f"{HERE}.Paced"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "^diffusion_steps=0 must be an integer from 1 to 32768"),
        ({"steps": True}, "^diffusion_steps=True must be an integer"),
        ({"threshold": 7}, "^diffusion_threshold=7 must be a number from 0 to 1"),
        ({"threshold": float("nan")}, "^diffusion_threshold=nan must be a number from 0 to 1"),
        ({"factor": float("inf")}, r"^diffusion_factor=inf must be a number above 0 of at most 1e\+30"),
        ({"eps": 2}, "^diffusion_eps=2 must be a number above 0 of at most 1"),
        ({"cache": "all"}, "^diffusion_cache='all' must be one of none, prefix, dual"),
        ({"trace": "yes"}, "^diffusion_trace='yes' must be true or false"),
        ({"algorithm": "guess"}, "^diffusion_algorithm='guess' must be one of confidence_threshold, "),
        ({"treshold": 0.5}, "^diffusion_treshold has no effect .*Known: diffusion_algorithm"),
        ({"algorithm": PACED, "pace": 10}, "^diffusion_pace=10 must be an integer from 1 to 9"),
        ({"eps": 0.5, "end_time": 0.25}, "^diffusion_end_time=0.25 contradicts diffusion_end_time=0.5"),
        ({"infill_ids": []}, "^diffusion_infill_ids=.. must be a list of token ids, -1 for a hole"),
        ({"block_length": 8192}, "^diffusion_block_length=8192 must be an integer from 1 to 4096"),
    ],
)
def test_parameters_are_checked_when_they_are_made(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        DiffusionParams(**given)


def test_parameters_of_a_request() -> None:
    params = DiffusionParams(steps=2, eps=0.5, trace=1, low_threshold=None)  # type: ignore[arg-type]
    assert params == DiffusionParams(steps=2, end_time=0.5, trace=True)
    assert params.to_extra_args() == {
        "diffusion_steps": 2, "diffusion_end_time": 0.5, "diffusion_trace": True
    }  # fmt: skip
    assert DiffusionParams.from_extra_args(params.to_extra_args()) == params
    assert pickle.loads(pickle.dumps(params)) == params
    made = params.sampling_params(temperature=0, max_tokens=9, extra_args={"mine": 1, "diffusion_steps": 2})
    assert (made.temperature, made.max_tokens) == (0, 9)
    assert made.extra_args == {"mine": 1, **params.to_extra_args()}
    with pytest.raises(
        ParameterError, match="diffusion_steps=4, DiffusionParams has diffusion_steps=2; give"
    ):
        params.sampling_params(extra_args={"diffusion_steps": 4})
    with pytest.raises(
        ParameterError, match=r"diffusion_eps=0\.1, DiffusionParams has diffusion_end_time=0.5"
    ):
        params.sampling_params(extra_args={"diffusion_eps": 0.1})


def test_a_template_is_as_long_as_the_answer() -> None:
    params = DiffusionParams(infill_ids=[5, -1, -1])
    assert params.sampling_params().max_tokens is None
    assert params.sampling_params(max_tokens=3).max_tokens == 3
    with pytest.raises(ParameterError, match="max_tokens=2 must not be below the 3 tokens of the template"):
        params.sampling_params(max_tokens=2)
    assert DiffusionParams(infill="<|hole:4|>").sampling_params().max_tokens is None


def test_the_signature_names_every_field() -> None:
    """What type checkers read is written by hand; pydantic's is made."""
    source = inspect.getsource(DiffusionParams)
    for name in fields():
        assert f"            {name}: " in source


def test_a_plug_in_s_number_is_like_a_built_in_one() -> None:
    asked = DiffusionParams(algorithm=PACED, speed=3, must=1.5).sampling_params()
    decoding = resolve_decoding(asked, CONFIG_OF_PACED)
    assert decoding.values == {"threshold": 0.75, "pace": 3, "must": 1.5}
    (default,) = (
        resolve_decoding(SamplingParams(extra_args={"diffusion_must": 0}), CONFIG_OF_PACED).values["pace"],
    )
    assert default == 4
    with pytest.raises(ParameterError, match=f"diffusion_must=None must be given with .*{PACED}"):
        resolve_decoding(None, CONFIG_OF_PACED)
    with pytest.raises(ParameterError, match="diffusion_pace has no effect"):
        resolve_decoding(SamplingParams(extra_args={"diffusion_pace": 3}), CONFIG)
    for name in ("trace", "eps"):
        taken = type("Taken", (Paced,), {"numbers": {name: Parameter("Mine.", default=1)}})
        with pytest.raises(ParameterError, match=f"numbers of a name that is taken: {name}"):
            DiffusionParams.from_extra_args({}, taken())


CONFIG_OF_PACED = MaskedDiffusionConfig(
    block_length=8, algorithm=PACED, mask_token_id=1, numbers={"threshold": 0.75, "pace": 4}
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 3000000000}, "steps\n  Input should be less than or equal to 32768"),
        ({"max_post_steps": 3000000000}, "max_post_steps=3000000000 must be an integer from 0 to 32768"),
        ({"threshold": 2}, "threshold=2 must be a number from 0 to 1"),
        ({"algorithm": PACED, "pace": 0}, "pace=0 must be an integer from 1 to 9"),
        ({"pace": 3}, "pace=3 has no effect. Known: .*, algorithm, "),
        ({"block_length": 4, "canvas_length": 8}, "canvas_length=8 and block_length=4 name the same thing"),
        ({"eps": 0.5, "end_time": 0.25}, "end_time=0.25 and end_time=0.5 name the same thing"),
        ({"max_denoising_steps": 4}, "max_denoising_steps=4 has no effect .* set steps"),
        ({"block_length": 8192}, "block_length\n  Input should be less than or equal to 4096"),
    ],
)
def test_the_operator_is_held_to_the_request_s_ranges(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineArgs(diffusion_config=json.loads(json.dumps(settings))).create_diffusion_config()


def test_the_operator_s_aliases_and_numbers() -> None:
    config = EngineArgs(
        diffusion_config={"canvas_length": 8, "eps": 0.5, "factor": 1}
    ).create_diffusion_config()
    assert isinstance(config, MaskedDiffusionConfig)
    assert (config.block_length, config.canvas_length) == (8, 8)
    assert config.numbers == {"end_time": 0.5, "factor": 1.0}


def test_defaults_are_values_of_their_parameters() -> None:
    known = parameters()
    for family in FAMILIES:
        for name in ("threshold", "entropy_bound"):
            known[name].parse(getattr(family, name))
    assert all(one.default is None or one.parse(one.default) == one.default for one in known.values())


def policy(*bases: type, **attributes: Any) -> str:
    """A policy of another package, by its dotted path."""
    made = type("Made", bases or (UnmaskingPolicy,), attributes)
    name = f"Made{len(globals())}"
    globals()[name] = made
    return f"{HERE}.{name}"


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        (policy(), r"has no select\(\)"),
        (policy(ScheduledPolicy), r"is a ScheduledPolicy and has no score\(\), which ranks the positions"),
        (policy(LinearTimePolicy), r"is a LinearTimePolicy and has no score\(\)"),
        (policy(select=selects, api_version=0), "interface 0, this engine has version"),
        (policy(select=selects, rule=Rule.STATIC, uses_steps=True), r"has rule STATIC beside select\(\)"),
        (
            policy(rule=Rule.THRESHOLD, numbers={"threshold": THRESHOLD}, rewrite=lambda *_: None),
            r"has rule THRESHOLD beside rewrite\(\)",
        ),
        (policy(ScheduledPolicy, rule=Rule.STATIC, score=lambda *_: None), r"rule STATIC beside score\(\)"),
        (policy(rule=Rule.FACTOR), "has rule FACTOR, which reads 'factor', and no such name in numbers"),
        (policy(rule=Rule.DYNAMIC, numbers={"threshold": THRESHOLD}), "so uses_steps must be True"),
        (policy(select=selects, numbers={"pace": 2}), r"numbers\['pace'\]=2, which is no Parameter"),
        (policy(select=selects, numbers={"pace": Parameter("Text.", str)}), "no Parameter of a number"),
        (
            policy(select=selects, numbers={"low": Parameter("Low.", HIGH_ENOUGH, default=2)}),
            "with the default 2, which must be a number of at most 1",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_at_registration(path: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        get_policy(path)


def test_what_a_policy_does_follows_from_its_methods() -> None:
    plain = get_policy(policy(select=selects))
    assert (plain.boosts, plain.rewrites) == (False, False)
    both = get_policy(
        policy(
            select=selects,
            boost=lambda self, stats, canvas: Boost(stats.token[..., None], stats.confidence[..., None]),
            rewrite=lambda self, stats, canvas: Rewrite(canvas.unmasked),
        )
    )
    assert (both.boosts, both.rewrites) == (True, True)
    assert both.api_version == UNMASKING_POLICY_API
