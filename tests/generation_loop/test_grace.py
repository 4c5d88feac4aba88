# SPDX-License-Identifier: Apache-2.0
"""Requests end before the time of a shutdown is over, and a stream's request is made before its response."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm.v1.generation_loop.early_admission import AdmittedPrompt, admits_at_once, admitted_request
from vllm.v1.generation_loop.grace import DEFAULT_SECONDS, end_in_time


class Core:
    """An engine core with two requests."""

    def __init__(self, state: str = "RUNNING", seconds: int = 10) -> None:
        self.shutdown_state = SimpleNamespace(name=state)
        self.vllm_config = SimpleNamespace(shutdown_timeout=seconds)
        self.requests = ["a", "b"]
        self.aborted: list[str] = []
        self.scheduler = SimpleNamespace(finish_requests=self._finish)

    def _finish(self, ids: Any, status: Any) -> list[str]:
        assert ids is None and status.name == "FINISHED_ABORTED"
        ended, self.requests = self.requests, []
        return ended

    def _send_abort_outputs(self, ended: list[str]) -> None:
        self.aborted += ended


def test_requests_end_before_the_time_is_over() -> None:
    core = Core()
    end_in_time(core, now=0.0)
    end_in_time(core, now=1000.0)
    assert not core.aborted, "no shutdown was asked for"
    core.shutdown_state.name = "SHUTTING_DOWN"
    for now in (1000.0, 1003.0, 1006.9):
        end_in_time(core, now=now)
        assert not core.aborted
    end_in_time(core, now=1007.5)
    assert core.aborted == ["a", "b"]
    end_in_time(core, now=1008.0)
    assert core.aborted == ["a", "b"]


def test_an_engine_without_a_shutdown_state_goes_on() -> None:
    end_in_time(SimpleNamespace())


def test_the_default_time_is_not_zero() -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.diffusion import bundled_path

    assert EngineArgs(model=bundled_path()).create_engine_config().shutdown_timeout == DEFAULT_SECONDS > 0
    asked = EngineArgs(model=bundled_path(), shutdown_timeout=3).create_engine_config()
    assert asked.shutdown_timeout == 3


class Client:
    """An engine's client that makes requests of names."""

    def __init__(self, loop: str) -> None:
        tracing = SimpleNamespace(otlp_traces_endpoint=None)
        self.vllm_config = SimpleNamespace(generation_loop=loop, observability_config=tracing)
        self.input_processor = self
        self.made: list[str] = []

    def process_inputs(self, request_id: str, prompt: Any, params: Any, **more: Any) -> Any:
        if admitted := admitted_request(prompt, request_id, more.get("priority", 0)):
            return admitted
        if params == "wrong":
            raise ValueError("wrong")
        self.made.append(request_id)
        return SimpleNamespace(request_id=request_id)

    @admits_at_once
    async def generate(self, prompt: Any, sampling_params: Any, request_id: str, *, priority: int = 0) -> Any:
        yield self.process_inputs(request_id, prompt, sampling_params, priority=priority)


PROMPT = {"type": "token", "prompt_token_ids": [1]}


async def first(stream: Any) -> Any:
    return await stream.__anext__()


def test_a_stream_refuses_when_it_is_made() -> None:
    import asyncio

    client = Client("block_diffusion")
    with pytest.raises(ValueError, match="wrong"):
        client.generate(PROMPT, "wrong", "a")
    stream = client.generate(PROMPT, "right", "b")
    assert client.made == ["b"]
    assert asyncio.run(first(stream)).request_id == "b"
    assert client.made == ["b"], "made once"
    later = client.generate(PROMPT, "right", "c")
    assert asyncio.run(first(later)).request_id == "c"
    assert "request" not in PROMPT


def test_upstream_s_loop_and_prompts_to_be_tokenised_are_left_alone() -> None:
    import asyncio

    for client, prompt in ((Client("autoregressive"), PROMPT), (Client("block_diffusion"), "text")):
        stream = client.generate(prompt, "wrong", "a")
        with pytest.raises(ValueError, match="wrong"):
            asyncio.run(first(stream))


def test_an_admitted_request_is_taken_once_under_its_last_name() -> None:
    prompt = AdmittedPrompt(PROMPT)
    prompt.request = SimpleNamespace(request_id="a")  # type: ignore[assignment]
    taken = admitted_request(prompt, "a_0", 0)
    assert taken is not None and taken.request_id == "a_0"
    assert admitted_request(prompt, "a_1", 0) is None
    with pytest.raises(ValueError, match=r"priority=.* must fit into 64 bits"):
        admitted_request(prompt, "a_1", 2**64)
