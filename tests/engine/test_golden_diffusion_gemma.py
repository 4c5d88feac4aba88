# SPDX-License-Identifier: Apache-2.0
"""transformers' DiffusionGemma gave these ids, canvases and steps from these draws; the engine must too."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests import warm
from tests.engine.conftest import IN_PROCESS, SETTINGS
from tests.engine.run_renoising import CASES, FOLDER, LOGITS

RENOISING_SETTINGS: dict[str, Any] = SETTINGS | {
    "model": str(FOLDER),
    "diffusion_config": {"block_length": 32},
    # Prompts come in chunks, windows wait for room, and not all requests find KV blocks.
    "max_num_batched_tokens": 96,
    "max_model_len": 256,
    "block_size": 32,
    "num_gpu_blocks_override": 28,
}
NUMBERS = list(range(len(CASES)))


def run_golden(batches: list[list[int]], **settings: Any) -> Any:
    """Runs batches of cases with their recorded draws, in another process.

    Args:
        batches: Numbers of the cases of each.
        **settings: Engine arguments that differ from ``RENOISING_SETTINGS``.
    """
    done = warm.run(
        "tests.engine.run_renoising",
        input=json.dumps({"settings": RENOISING_SETTINGS | settings, "batches": batches}),
        env={**os.environ, **IN_PROCESS},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def ran() -> Any:
    """Every case alone, then all of them at once."""
    return run_golden([*([n] for n in NUMBERS), NUMBERS])


def check(result: dict[str, Any], case: dict[str, Any]) -> None:
    """Ids up to the end token, and every step of every canvas, are the published ones."""
    wanted = case["output_ids"][: case["params"]["max_new_tokens"]]
    ends = [i for i, token in enumerate(wanted) if token in case["params"]["eos_token_id"]]
    assert result["token_ids"] == wanted[: ends[0] + 1 if ends else None]
    steps = [
        {"block": b, "step": i, "accepted": a, "argmax": c, "done": i + 1 == block["steps"]}
        for b, block in enumerate(case["blocks"])
        for i, (a, c) in enumerate(zip(block["accepted"], block["argmax"], strict=True))
    ]
    assert [{k: s[k] for k in steps[0]} for s in result["steps"]] == steps
    means = [mean for block in case["blocks"] for mean in block["mean_entropy"]]
    assert [s["mean_entropy"] for s in result["steps"]] == pytest.approx(means, abs=1e-3)


def test_alone(ran: Any) -> None:
    for (result,), case in zip(ran["results"][:-1], CASES, strict=True):
        check(result, case)


def test_at_once(ran: Any) -> None:
    """Canvases of two widths in one step; a preempted request makes its canvas again, the same."""
    assert ran["preempted"] > 0
    for result, case in zip(ran["results"][-1], CASES, strict=True):
        last = {(s["block"], s["step"]): s for s in result["steps"]}
        check(result | {"steps": list(last.values())}, case)


def test_logits_of_first_forwards(ran: Any) -> None:
    """A canvas's first step, one with self-conditioning, and one behind a commit; soft-capped."""
    found = {
        f"{case['name']}.block{s['block']}.step{s['step']}": s["logits"]
        for (result,), case in zip(ran["results"][:-1], CASES, strict=True)
        for s in result["steps"]
        if "logits" in s
    }
    assert found.keys() == set(LOGITS.files)
    assert max(found.values()) < 2e-4
