# SPDX-License-Identifier: Apache-2.0
"""The short forms of ``python -m tests.reliability``, on one server, which the last test ends.

Tests are in their order: the later ones also see what the earlier ones left behind.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.reliability.fuzz import COMPLETIONS, Fuzzer
from tests.reliability.world import abort_some, all_ids, ask, assert_empty, fuzz, longer, mixed, world
from tests.server.conftest import MODEL, Server

KNOWN_WITHOUT_A_FIELD = 0.2
"""Share of refusals, all of upstream's, that may name no field."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")  # for /collective_rpc
        log = tmp_path_factory.mktemp("reliability") / "log"
        options = ("--block-size", "32", "--num-gpu-blocks-override", "10", "--shutdown-timeout", "8")
        with world(log, *options, "--no-log-error-stack") as running:
            yield running


def answers(server: Server) -> list[list[int]]:
    return all_ids(server, [mixed(n) for n in range(4)], 1)


def test_ids_are_as_alone_under_memory_pressure(server: Server) -> None:
    bodies = [longer(mixed(n)) for n in range(10)]
    alone = all_ids(server, bodies, 1)
    before = server.metrics().get("vllm:num_preemptions_total", 0)
    assert all_ids(server, bodies, len(bodies)) == alone
    assert server.metrics()["vllm:num_preemptions_total"] > before, "nothing was preempted"
    assert_empty(server)


def test_aborts_leave_nothing(server: Server) -> None:
    before = answers(server)
    abort_some(server, 60, random.Random(5))
    assert_empty(server)
    assert answers(server) == before


def test_fuzz(server: Server) -> None:
    fuzzer = Fuzzer(seed=11, model=MODEL)
    findings = fuzz(server, (fuzzer.case() for _ in range(300)))
    assert not findings.faults, "\n".join(findings.faults[:10])
    assert sum(findings.statuses.values()) == 300
    assert findings.statuses[400] > 100
    assert sum(findings.unnamed.values()) <= KNOWN_WITHOUT_A_FIELD * findings.statuses[400], findings.unnamed
    assert_empty(server)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"vllm_xargs": {"diffusion_steps": 0}}, "diffusion_steps"),
        ({"vllm_xargs": {"diffusion_infill": "<|hole"}}, "diffusion_infill"),
        ({"vllm_xargs": {"diffusion_infill": "<|hole:" + "9" * 5000 + "|>"}}, "diffusion_infill"),
        ({"vllm_xargs": {"diffusion_infill": "\ud800<|hole:2|>"}}, "diffusion_infill"),
        ({"structured_outputs": ["json"]}, "structured_outputs"),
        ({"temperature": 9.0}, "temperature"),
        ({"logprobs": 1000}, "logprobs"),
        ({"repetition_penalty": 1e-50}, "repetition_penalty"),
        ({"stop": ["\ud800"]}, "stop"),
        ({"prompt": "a\ud800"}, "prompt"),
        ({"stop_token_ids": [2**64]}, "stop_token_ids"),
        ({"prompt": [2**64]}, "prompt"),
        ({"n": 17}, "n"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_comes_before_the_response(
    server: Server, body: dict[str, object], named: str, stream: bool
) -> None:
    """Status 400, the field's name, and of the log one line: the access log's."""
    import json

    had = len(server.log.read_text())
    content = json.dumps({**ask("sort 3142=", 1), **body, "stream": stream}).encode()
    headers = {"content-type": "application/json"}
    response = httpx.post(server.url + COMPLETIONS, content=content, headers=headers, timeout=60)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert named in (error["param"] or "") or named in error["message"], error
    lines = [line for line in server.log.read_text()[had:].splitlines() if "GET /metrics" not in line]
    assert len(lines) <= 1 and not any("Traceback" in line for line in lines), lines


def test_refused_streams_of_other_endpoints(server: Server) -> None:
    chat = {"messages": [{"role": "user", "content": "sort 3142="}]}
    for path, given in (
        ("/v1/chat/completions", chat),
        ("/v1/responses", {"input": "sort 3142="}),
        ("/v1/messages", {**chat, "max_tokens": 9}),
    ):
        body = {"model": MODEL, **given, "stream": True, "top_k": -7}
        response = httpx.post(server.url + path, json=body, timeout=60)
        assert response.status_code == 400, (path, response.text)
        assert "top_k" in response.text, (path, response.text)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("name", ["generative_scoring"])
def test_scores_of_the_next_token_are_refused(server: Server, name: str) -> None:
    body = {"model": MODEL, "query": "sort", "items": ["3142=", "1"], "label_token_ids": [50, 51]}
    response = httpx.post(f"{server.url}/{name}", json=body, timeout=60)
    assert response.status_code == 400, response.text
    assert "not supported with diffusion models" in response.text


def test_a_grammar_beside_logits_that_are_no_numbers_ends(server: Server) -> None:
    """Float32 makes infinities of what these penalties leave."""
    body = {**mixed(6), "repetition_penalty": 1e38, "temperature": 0.0}
    response = httpx.post(server.url + COMPLETIONS, json=body, timeout=60)
    assert response.status_code in (200, 400), response.text


def reload(server: Server, **kwargs: object) -> httpx.Response:
    body = {"method": "reload_weights", "kwargs": kwargs}
    return httpx.post(f"{server.url}/collective_rpc", json=body, timeout=120)


def test_a_failed_reload_does_not_end_the_worker(server: Server, tmp_path: Path) -> None:
    from vllm.v1.diffusion import bundled_path

    before = answers(server)
    missing = reload(server, weights_path=str(tmp_path / "nowhere"))
    assert missing.status_code >= 400
    assert answers(server) == before, "the old weights are kept"
    broken = tmp_path / "broken"
    shutil.copytree(bundled_path(), broken)
    weights = broken / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert reload(server, weights_path=str(broken)).status_code >= 400
    asked = httpx.post(server.url + COMPLETIONS, json=mixed(0), timeout=60)
    assert asked.status_code in (200, 500)
    if asked.status_code == 500:
        assert "Weights could not be loaded" in asked.text
    assert reload(server).status_code == 200
    assert answers(server) == before


def test_sigterm_under_load_ends_every_stream(server: Server) -> None:
    """Those that would take longer too: with an end, not with a connection that is gone."""
    ends: list[str] = []
    begun = threading.Semaphore(0)

    async def one(client: httpx.AsyncClient, number: int) -> None:
        steps = {"diffusion_steps": 200, "diffusion_algorithm": "low_confidence_static"}
        body = {**mixed(1), "n": 40, "ignore_eos": True, "max_tokens": 200, "stream": True}
        if number % 2:
            body = {**body, "n": 1, "max_tokens": 20}
        async with client.stream("POST", COMPLETIONS, json={**body, "vllm_xargs": steps}) as response:
            begun.release()
            assert response.status_code == 200
            lines = [line async for line in response.aiter_lines() if line]
        ends.append(lines[-1] if lines else "")

    async def run() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            streams = [asyncio.create_task(one(client, number)) for number in range(6)]
            for _ in streams:
                while not begun.acquire(blocking=False):
                    await asyncio.sleep(0.02)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*streams)

    asyncio.run(run())
    assert ends == ["data: [DONE]"] * 6
    assert server.process.wait(60) == 0
