# SPDX-License-Identifier: Apache-2.0
"""Ranks on two nodes of a Ray cluster; plug-ins there: ``tests/examples/test_modes.py``."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.engine import cases as sdar
from tests.engine import golden, test_llada
from tests.engine.conftest import GOLDEN, run_elsewhere
from tests.ray_nodes import ACROSS, Cluster, two_nodes
from tests.server.conftest import serving
from vllm.v1.diffusion import bundled_path

pytestmark = [
    pytest.mark.every_mode,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The two nodes."""
    with two_nodes(tmp_path_factory.mktemp("nodes")) as running:
        yield running


def test_blocks(cluster: Cluster) -> None:
    cases = golden.cases_of(GOLDEN / "sdar")
    own = {"model": str(GOLDEN / "sdar"), **ACROSS}
    ((*results, _),) = run_elsewhere([[sdar.of_golden(case) for case in cases]], cluster.environment, **own)
    for result, case in zip(results, cases, strict=True):
        golden.check(result, case)


def test_canvases(cluster: Cluster) -> None:
    ((*results, _),) = run_elsewhere(
        [[test_llada.of_golden(case) for case in test_llada.published()]],
        cluster.environment,
        model=str(GOLDEN / "llada"),
        max_model_len=512,
        diffusion_config={"block_length": 64, "cache": test_llada.OWN_MODE},
        **ACROSS,
    )
    test_llada.check_golden(results)


def test_a_node_that_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next request fails, the log says of whom, and the server ends."""
    options = ("--distributed-executor-backend", "ray", "--tensor-parallel-size", "2")
    with two_nodes(tmp_path) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        with serving(bundled_path("sdar"), tmp_path / "log", *options) as server:

            def ask() -> str:
                body = {"model": "bundled", "prompt": "sort 3142=", "max_tokens": 8, "temperature": 0}
                headers = {"Content-Type": "application/json"}
                request = urllib.request.Request(
                    f"{server.url}/v1/completions", json.dumps(body).encode(), headers
                )
                with urllib.request.urlopen(request, timeout=120) as response:
                    return str(json.load(response)["choices"][0]["text"])

            assert ask() == "1234"
            cluster.lose_a_node()
            with pytest.raises(urllib.error.HTTPError, match="500") as refused:
                ask()
            assert "EngineCore" in refused.value.read().decode()
            assert server.process.wait(60) is not None
            assert "RayWorkerProc rank=[1] died unexpectedly" in server.log.read_text()
