# SPDX-License-Identifier: Apache-2.0
"""When requests have ended, the workers hold what they held when the engine had started."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from tests import warm
from tests.engine.conftest import GOLDEN, SETTINGS

ENGINES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "block-causal, two stages": (
        {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        {"model": str(GOLDEN / "sdar"), "pipeline_parallel_size": 2},
    ),
    "bidirectional": (
        {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        {"model": str(GOLDEN / "llada"), "max_model_len": 256, "async_scheduling": True},
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_after_a_mixture_of_requests(engine: str) -> None:
    env, settings = ENGINES[engine]
    # A slot or two hold for a while what the others never see.
    done = warm.run(
        "tests.engine.run_given_back",
        input=json.dumps(SETTINGS | {"max_num_seqs": 8} | settings),
        env={**os.environ, "VLLM_ALLOW_INSECURE_SERIALIZATION": "1", **env},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])
    results = found["left"]
    assert [left for left, _ in results] == [[]] * len(results)
    # The last stage denoises, and no other needs a grammar.
    assert [compiled for _, compiled in results] == [False] * (len(results) - 1) + [True]
    # Nothing grows with the number of requests: no tensor, no object of a request's.
    assert found["more"] == ([{}] if engine == "bidirectional" else [])
