# SPDX-License-Identifier: Apache-2.0
"""S2D2's published code gave these ids on SDAR and LLaDA2; the engine must give the same."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.engine.cases import Case, expected, random_prompt
from tests.engine.conftest import GOLDEN, IN_PROCESS, SETTINGS, run_elsewhere
from tests.engine.golden import altered_configuration, cases_of
from tests.reference.moe import Llada2Reference
from tests.reference.sdar import SdarReference
from tests.reference.self_speculation import SelfSpeculation, Spoken, of_golden

FOLDER = GOLDEN / "s2d2"
CASES = cases_of(FOLDER)
EDITED = cases_of(FOLDER, "cases_llada2")
MODELS = {"sdar": SdarReference, "llada2": Llada2Reference}
LOOP: dict[str, Any] = {"generation_loop": "verified_block_diffusion"}


def as_request(case: dict[str, Any]) -> Case:
    """A golden case as a request; its parameters are the published code's."""
    params, how = case["params"], of_golden(case["params"])
    edits = how.edit_threshold is not None
    own: dict[str, float] = {"min_span": how.shortest, "resample": int(how.resamples)}
    own |= {"confident_cost" if how.dynamic else "verify_cost": how.coefficient}
    if how.policy != "mask_span_length":
        own["verify_score"] = how.on
    if how.policy == "score_hysteresis":
        own["release_score"] = how.off
    if how.estimator == "margin":
        own["acceptance_margin"] = 0.05
    if not edits:
        own |= {"causal_cache": int(how.causal_cache), "causal_draft": int(how.causal_draft)}
    return Case(
        prompt=tuple(case["prompt_ids"]),
        max_tokens=params["gen_length"],
        algorithm="self_speculation_edit" if edits else "self_speculation",
        block_length=how.block_length,
        steps=None if edits else how.steps,
        threshold=1.0 if how.strategy == "low_confidence_static" else how.confidence,
        edit_threshold=how.edit_threshold,
        max_post_steps=how.max_post_steps if edits else None,
        seed=round(how.uniform * 1000),
        own=tuple((f"diffusion_{name}", value) for name, value in own.items()),
    )


def reported(name: str, cases: list[dict[str, Any]]) -> list[Spoken]:
    """What the reference makes of golden cases."""
    loop = SelfSpeculation(MODELS[name](GOLDEN / name))
    return [
        loop.answer(case["prompt_ids"], case["params"]["gen_length"], of_golden(case["params"]))
        for case in cases
    ]


def run_with_draws(batches: list[list[Case]], **settings: Any) -> list[list[dict[str, Any]]]:
    """As ``run_elsewhere``, with the draws of the golden cases."""
    task = {
        "settings": {**SETTINGS, **LOOP, **settings},
        "batches": [[vars(case) for case in batch] for batch in batches],
    }
    done = warm.run(
        "tests.engine.run_self_speculation", input=json.dumps(task), env={**os.environ, **IN_PROCESS}
    )
    assert done.returncode == 0, done.stderr[-6000:]
    results: list[list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return results


def check(result: dict[str, Any], want: Spoken) -> None:
    """Ids, and the forward pass that wrote each of them."""
    assert result["token_ids"] == want.output_ids
    assert result["unmask_steps"] == want.unmask_forward
    assert result["steps"] == want.drafts + want.verifications


@pytest.mark.parametrize(("name", "cases"), [("sdar", CASES), ("llada2", EDITED)])
def test_reference(name: str, cases: list[dict[str, Any]]) -> None:
    """It reproduces the published ids, and how often a draft was made, verified and corrected."""
    for spoken, case in zip(reported(name, cases), cases, strict=True):
        assert spoken.output_ids == case["output_ids"], case["name"]
        counts = case["num_forward_detail"]
        assert spoken.verifications == counts["verify"]
        assert spoken.resampled == counts["resampled"]
        if case["unmask_step"] is not None:
            assert spoken.unmask_step == case["unmask_step"]
            assert spoken.drafts == counts["denoise"]


@pytest.mark.parametrize(("name", "cases"), [("sdar", CASES), ("llada2", EDITED)])
def test_engine(name: str, cases: list[dict[str, Any]]) -> None:
    """One after the other, all in a batch, and where the context ends."""
    spoken = reported(name, cases)
    requests = [as_request(case) for case in cases]
    last = random_prompt(1003, 9)
    how = of_golden(cases[0]["params"])
    at_the_end = replace(requests[0], prompt=last, max_tokens=21)
    batches = [[request] for request in requests] + [[at_the_end], requests + requests[::-1]]
    *alone, end, together = run_with_draws(batches, model=str(GOLDEN / name))
    for (result, _), want in zip(alone, spoken, strict=True):
        check(result, want)
    for result, want in zip(together[:-1], spoken + spoken[::-1], strict=True):
        check(result, want)
    how.context = 1024
    check(end[0], SelfSpeculation(MODELS[name](GOLDEN / name)).answer(list(last), 21, how))


def test_beside_others_and_under_pressure() -> None:
    """Their own draws are the seed's: the same alone, in a batch, in chunks and after a preemption."""
    ways: list[dict[str, Any]] = [
        {"seed": 3},
        {"seed": 4},
        {"seed": 3, "temperature": 1.0, "top_k": 40},
        {"seed": 5, "own": (("diffusion_causal_cache", 0), ("diffusion_causal_draft", 0))},
        {"seed": 6, "own": (("diffusion_verify_cost", 1), ("diffusion_tempering", 0.5))},
    ]
    spoken = [
        Case(random_prompt(33 + 8 * (i // 2), 5), 60, "self_speculation", (16, 8, 4)[i // 2], **how)
        for i, how in enumerate(ways)
    ]
    hole = (7, -1, -1, 8, 9) + (-1,) * 20 + (10,)
    spoken.append(Case(random_prompt(20, 5), len(hole), "self_speculation", 8, seed=9, template=hole))
    others = [
        Case(random_prompt(33, 5), 40, "low_confidence_static", 8, steps=3),
        Case(random_prompt(41, 5), 40, "low_confidence_dynamic", 16, threshold=0.3),
    ]
    *alone, together = run_elsewhere(
        [[case] for case in spoken] + [spoken + others],
        env=IN_PROCESS,
        **LOOP,
        max_model_len=256,
        max_num_batched_tokens=64,
        block_size=32,
        num_gpu_blocks_override=12,
    )
    for (result, _), beside in zip(alone, together, strict=False):
        assert result["token_ids"] == beside["token_ids"]
    for result, case in zip(together[len(spoken) : -1], others, strict=True):
        assert result["token_ids"] == expected(case).output_ids
    assert together[-1]["vllm:num_preemptions"] > 0
    first, second, filled = alone[0][0], alone[1][0], alone[-1][0]["token_ids"]
    assert first["token_ids"] != second["token_ids"]
    # A draft and its verification, and no more steps than that for a token.
    assert 60 / 16 < first["steps"] <= 2 * 64
    assert [new for new, old in zip(filled, hole, strict=True) if old >= 0] == [t for t in hole if t >= 0]
    assert len(filled) == len(hole) and 508 not in filled


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An engine's that verifies drafts; nothing is started."""
    return altered_configuration(GOLDEN / "sdar", tmp_path_factory.mktemp("verified"), LOOP)


@pytest.mark.parametrize(
    ("own", "params", "message"),
    [
        ({"exit_threshold": 0.9}, {}, "diffusion_exit_threshold=0.9 is not supported with"),
        ({"max_steps": 3}, {}, "diffusion_max_steps=3 is not supported with"),
        ({"eos_early_stop": True}, {}, "diffusion_eos_early_stop=True is not supported with"),
        ({"min_span": 0}, {}, "diffusion_min_span=0 must be an integer from 1"),
        ({"resample": 2}, {}, "diffusion_resample=2 must be an integer from 0 to 1"),
        ({"edit_threshold": 0.5}, {}, "diffusion_edit_threshold=0.5 has no effect with"),
        ({}, {"logprobs": 1}, "logprobs=1 is not supported with diffusion_algorithm='self_speculation'"),
        ({}, {"structured_outputs": {"regex": "a"}}, "structured_outputs=.* is not supported with"),
    ],
)
def test_refused(configuration: Any, own: dict[str, Any], params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        admit(configuration, own, **params)


def admit(configuration: Any, own: dict[str, Any], **params: Any) -> None:
    """Has a request checked as the front end does."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.generation_loop.registry import get_generation_loop

    extra = {f"diffusion_{name}": value for name, value in own.items()}
    extra.setdefault("diffusion_algorithm", "self_speculation")
    if "structured_outputs" in params:
        params["structured_outputs"] = StructuredOutputsParams(**params["structured_outputs"])
    made = SamplingParams(max_tokens=8, detokenize=False, extra_args=extra, **params)
    get_generation_loop(configuration).validate_params(made, configuration)


def test_only_an_engine_that_verifies_takes_it(tmp_path: Path, configuration: Any) -> None:
    admit(configuration, {})
    admit(configuration, {"algorithm": "self_speculation_edit"})
    other = altered_configuration(GOLDEN / "sdar", tmp_path)
    with pytest.raises(ValueError, match="needs an engine that verifies drafts: start it with --generation"):
        admit(other, {})
    with pytest.raises(ValueError, match="needs an engine that verifies drafts"):
        altered_configuration(
            GOLDEN / "sdar", tmp_path, {"diffusion_config": {"algorithm": "self_speculation"}}
        )


@pytest.mark.parametrize(
    ("checkpoint", "settings", "message"),
    [
        ("sdar", {"async_scheduling": True}, "async_scheduling=True is not supported with self-speculation"),
        ("sdar", {"pipeline_parallel_size": 2}, "pipeline_parallel_size"),
        ("sdar", {"max_num_batched_tokens": 11, "max_model_len": 64}, "max_num_batched_tokens=11 is too"),
        ("sdar", {"max_num_seqs": 300000, "max_num_batched_tokens": 300000}, "for the drafts of"),
        ("llada22", {}, "generation_loop='verified_block_diffusion' is not for this model"),
        ("llada", {}, "generation_loop='verified_block_diffusion' is not for this model"),
    ],
)
def test_refused_engines(tmp_path: Path, checkpoint: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        altered_configuration(GOLDEN / checkpoint, tmp_path, LOOP | settings)
