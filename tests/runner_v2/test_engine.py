# SPDX-License-Identifier: Apache-2.0
"""Autoregressive requests: both model runners give the same, in every way of running them."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.runner_v2.generate import make_checkpoint

QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
# Prompts are split into chunks, and there are too few blocks for the batch: requests are preempted.
TIGHT = {"max_num_batched_tokens": 64, "block_size": 32, "num_gpu_blocks_override": 14}
RUNS = {
    "v1": ({"VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, TIGHT),
    "v2": (
        {"VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        {"async_scheduling": False},
    ),
    "v2 tight": ({"VLLM_USE_V2_MODEL_RUNNER": "1"}, {**TIGHT, "async_scheduling": True}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each run reported; all at once, one thread each."""
    folder = tmp_path_factory.mktemp("runner_v2")
    make_checkpoint(folder / "model")
    started = {}
    for name, (variables, options) in RUNS.items():
        environment = os.environ | variables | QUIET
        out = folder / f"{name}.json"
        arguments = [str(folder / "model"), str(out), json.dumps(options)]
        with Path(os.devnull).open("r+") as nothing, (folder / f"{name}.log").open("w") as log:
            started[name] = warm.start(
                "tests.runner_v2.generate", arguments, streams=(nothing, nothing, log), env=environment
            )
    try:
        for name, process in started.items():
            code = process.wait(timeout=300)
            assert code == 0, f"{name}: {(folder / f'{name}.log').read_text()[-4000:]}"
    finally:
        for process in started.values():
            process.kill()
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in RUNS}


def assert_same(ours: Any, theirs: Any, where: Any) -> None:
    """Equal, but for the rounding of log probabilities."""
    assert len(ours) == len(theirs), where
    for request, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        at = f"{where}, request {request}"
        for key in ("ids", "text", "reason"):
            assert a[key] == b[key], f"{at}: {key}"
        for key in ("logprobs", "prompt_logprobs"):
            assert (a[key] is None) == (b[key] is None), f"{at}: {key}"
            for step_a, step_b in zip(a[key] or [], b[key] or [], strict=True):
                if step_a is None or step_b is None:
                    assert step_a == step_b
                    continue
                assert [s[0] for s in step_a] == [s[0] for s in step_b], f"{at}: {key}"
                assert [s[2] for s in step_a] == [s[2] for s in step_b], f"{at}: ranks"
                for x, y in zip(step_a, step_b, strict=True):
                    assert x[1] == pytest.approx(y[1], abs=1e-3), f"{at}: {key}"


def test_the_runs_are_what_they_should_be(runs: Any) -> None:
    assert runs["v1"]["preemptions"] > 0
    assert runs["v2 tight"]["preemptions"] > 0


def test_v2_gives_what_v1_gives(runs: Any) -> None:
    for name in runs["v1"]:
        if name != "preemptions" and not name.startswith("random"):
            assert_same(runs["v2"][name], runs["v1"][name], name)


def test_v2_does_not_depend_on_how_it_is_run(runs: Any) -> None:
    """Chunks, preemption, processes and asynchronous scheduling; draws too."""
    for name in runs["v2"]:
        if name != "preemptions":
            assert_same(runs["v2 tight"][name], runs["v2"][name], name)


@pytest.mark.parametrize("run", RUNS)
def test_a_seed_gives_the_same_alone_and_in_a_batch(runs: Any, run: Any) -> None:
    """Upstream's V1 runner on a CPU dies of a seed if the prompt is split."""
    assert_same(runs[run]["random, alone"], runs[run]["random"][-1:], run)


@pytest.mark.parametrize("run", RUNS)
def test_what_was_asked_for(runs: Any, run: Any) -> None:
    reported = runs[run]
    assert {t for a in reported["allowed ids"] for t in a["ids"]} <= {5, 6, 7, 8, 9, 44}
    assert not any(re.search("a|bc|Z|!|XYZ", a["text"]) for a in reported["bad words"])
    for name in ("structured", "random, structured"):
        assert all(re.fullmatch("[0-9]{3}-[a-f]{2,5}", a["text"]) for a in reported[name]), name
    assert all(len(a["ids"]) >= 10 for a in reported["min tokens"])
    assert reported["random"] != reported["greedy"]
