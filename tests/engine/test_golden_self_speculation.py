# SPDX-License-Identifier: Apache-2.0
"""S2D2's published code gave these ids on SDAR and LLaDA2; the engine must give the same."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests import warm
from tests.engine.cases import Case
from tests.engine.conftest import GOLDEN, IN_PROCESS, SETTINGS
from tests.engine.golden import cases_of
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


def told(name: str, cases: list[dict[str, Any]]) -> list[Spoken]:
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
    assert result["steps"] == want.drafts + want.verifications


@pytest.mark.parametrize(("name", "cases"), [("sdar", CASES), ("llada2", EDITED)])
def test_reference(name: str, cases: list[dict[str, Any]]) -> None:
    """It reproduces the published ids, and how often a draft was made, verified and corrected."""
    for spoken, case in zip(told(name, cases), cases, strict=True):
        assert spoken.output_ids == case["output_ids"], case["name"]
        counts = case["num_forward_detail"]
        assert spoken.verifications == counts["verify"]
        assert spoken.resampled == counts["resampled"]
        if case["unmask_step"] is not None:
            assert spoken.unmask_step == case["unmask_step"]
            assert spoken.drafts == counts["denoise"]


@pytest.mark.parametrize(("name", "cases"), [("sdar", CASES), ("llada2", EDITED)])
def test_engine(name: str, cases: list[dict[str, Any]]) -> None:
    """Alone, one after the other, and all in a batch."""
    spoken = told(name, cases)
    requests = [as_request(case) for case in cases]
    batches = [[request] for request in requests] + [requests + requests[::-1]]
    results = run_with_draws(batches, model=str(GOLDEN / name))
    for (result, _), want in zip(results[:-1], spoken, strict=True):
        check(result, want)
    for result, want in zip(results[-1][:-1], spoken + spoken[::-1], strict=True):
        check(result, want)
