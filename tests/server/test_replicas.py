# SPDX-License-Identifier: Apache-2.0
"""Two engines behind two API servers: published ids from either, and metrics of each."""

from __future__ import annotations

import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine import cases as sdar
from tests.engine import test_llada as llada
from tests.engine.cases import Case
from tests.engine.golden import cases_of
from tests.server.conftest import MODEL, Server, serving

GOLDEN = Path(__file__).parent.parent / "golden"
REPLICAS = ("--data-parallel-size", "2", "--api-server-count", "2", "--max-num-seqs", "16")
CANVAS = json.dumps({"block_length": 64, "cache": llada.OWN_MODE})


def body(case: Case) -> dict[str, Any]:
    """A case as the fields of a completion request."""
    params = case.sampling_params()
    fields = {"model": MODEL, "prompt": list(case.prompt), "return_token_ids": True}
    names = ("temperature", "top_k", "top_p", "seed", "max_tokens", "ignore_eos", "stop_token_ids")
    fields |= {name: getattr(params, name) for name in names}
    return fields | {"vllm_xargs": params.extra_args | {"diffusion_stats": True}}


def ask(server: Server, fields: dict[str, Any], engine: int | None) -> dict[str, Any]:
    """Asks whichever engine, or the one that the header names."""
    headers = {"Content-Type": "application/json"}
    if engine is not None:
        headers["X-data-parallel-rank"] = str(engine)
    request = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(fields).encode(), headers, method="POST"
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        choice: dict[str, Any] = json.loads(response.read())["choices"][0]
        return choice


def per_engine(server: Server, name: str) -> dict[str, float]:
    """A counter's value of each engine."""
    found: dict[str, float] = {}
    pattern = rf'^{name}\{{.*?engine="(\d+)".*?\}} (\S+)$'
    for engine, value in re.findall(pattern, server.get("/metrics"), re.M):
        found[engine] = found.get(engine, 0.0) + float(value)
    return found


@pytest.mark.every_mode
@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_two_engines_give_the_ids_of_one(family: str, tmp_path: Path) -> None:
    """Blocks, and whole canvases; all requests at once, to either engine by name and to any."""
    options = ["--max-model-len", "512"]
    if family == "sdar":
        cases = cases_of(GOLDEN / "sdar")
        asked = [sdar.of_golden(case) for case in cases]
        options += ["--diffusion-config", json.dumps({"block_length": 16})]
    else:
        cases = llada.published()
        asked = [llada.of_golden(case) for case in cases]
        options += ["--diffusion-config", CANVAS, "--max-num-batched-tokens", "512"]
    with serving(GOLDEN / family, tmp_path / "log", *REPLICAS, *options) as server:
        jobs = [(i, engine) for i in range(len(cases)) for engine in (0, 1, None)]
        with ThreadPoolExecutor(16) as threads:
            choices = list(threads.map(lambda job: ask(server, body(asked[job[0]]), job[1]), jobs))
        answered = per_engine(server, "vllm:request_success_total")
        steps = per_engine(server, "vllm:diffusion_num_denoising_steps_total")
    for (i, engine), choice in zip(jobs, choices, strict=True):
        want, stops = cases[i]["output_ids"], asked[i].stop_token_ids
        if stops:
            want = want[: next(k for k, token in enumerate(want) if token in stops) + 1]
        assert choice["token_ids"] == want, (cases[i].get("name"), engine)
    assert set(answered) == {"0", "1"}
    assert sum(answered.values()) == len(jobs)
    assert min(answered.values()) >= len(cases), "the header was not heeded"
    assert set(steps) == {"0", "1"}
    assert sum(steps.values()) == sum(choice["diffusion"]["steps"] for choice in choices)
