# SPDX-License-Identifier: Apache-2.0
"""One served model, what is asked of it, and what it must still be afterwards."""

from __future__ import annotations

import asyncio
import collections
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.reliability.fuzz import COMPLETIONS, Case
from tests.server.conftest import MODEL, Server, serving

LONGEST_HONEST = 30.0
"""Seconds beyond which an answer is looked into."""

UNWRITABLE = "the grammar cannot be written in this model's vocabulary"
"""The end, with a reason, of a request whose grammar no token goes on with."""

TOO_SLOW = "grammar_time_limit"
"""Named in the end of one whose grammar takes too long; these two errors may be."""

SHORT_OF_BLOCKS = ("--block-size", "32", "--num-gpu-blocks-override", "10")
"""Options of a server on which all of a burst's requests do not fit at a time."""

PUZZLES = [
    "sort 3142=",
    "sort 4213=",
    "sudoku 1003/0300/3210/4132=",
    "sort 1234=",
    "sudoku 1423/2341/0014/4102=",
]


@contextmanager
def world(log: Path, *options: str, model: str | Path | None = None) -> Iterator[Server]:
    """A server that is short of KV blocks, so that requests are preempted."""
    from vllm.v1.diffusion import bundled_path

    limits = ("--max-model-len", "256", "--max-num-seqs", "16")
    # The long forms may run on a busy machine.
    with serving(model or bundled_path(), log, *limits, *options, cold=True, patience=1800) as server:
        yield server


@dataclass
class Findings:
    """What came back.

    Attributes:
        statuses: How often each status came.
        faults: What must not have come: the seed's number of the case, and a sentence.
        unnamed: Messages of refusals that name no field, and how often.
        unwritable: Requests that ended because the vocabulary cannot write their grammar.
        slowest: Seconds of the longest answer.
    """

    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    unnamed: collections.Counter[str] = field(default_factory=collections.Counter)
    unwritable: int = 0
    slowest: float = 0.0

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "statuses": {str(k): v for k, v in sorted(self.statuses.items())},
            "faults": self.faults[:20],
            "refusals_without_a_field": sum(self.unnamed.values()),
            "unwritable_grammars": self.unwritable,
            "slowest_seconds": round(self.slowest, 2),
        }


def post_plain(server: Server, body: dict[str, Any]) -> tuple[int, str]:
    """Sends a completion; status and text."""
    response = httpx.post(server.url + COMPLETIONS, json=body, timeout=120)
    return response.status_code, response.text


def judge(number: int, case: Case, status: int, text: str, seconds: float, findings: Findings) -> None:
    """Notes what must not be: an error of the server's, a broken stream, a refusal without a name."""
    findings.statuses[status] += 1
    findings.slowest = max(findings.slowest, seconds)
    shown = f"case {number} {case.path} {json.dumps(case.body)[:600]}: {status} {text[:300]}"
    if seconds > LONGEST_HONEST:
        findings.faults.append(f"{seconds:.0f} seconds: {shown}")
    if status in (200, 500) and (UNWRITABLE in text or TOO_SLOW in text):
        findings.unwritable += 1
    elif status == 200:
        # A stream whose request is refused or fails after its beginning says so inside.
        if '"error"' in text and re.search(r'^data: \{"error"', text, re.M):
            findings.faults.append(f"an error inside of a response: {shown}")
    elif status == 400:
        error = json.loads(text).get("error", {})
        message = str(error.get("message", ""))
        xargs = case.body.get("vllm_xargs")
        names = [*case.body, *(xargs if isinstance(xargs, dict) else ())]
        if not error.get("param") and not any(name in message for name in names if name):
            findings.unnamed[message[:160]] += 1
    elif status not in (404, 413, 422):
        findings.faults.append(shown)


def fuzz(server: Server, cases: Iterator[Case], minutes: float | None = None, workers: int = 8) -> Findings:
    """Sends cases, several at a time, while the server lives."""
    findings = Findings()
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    numbered = enumerate(cases)

    async def work(client: httpx.AsyncClient) -> None:
        for number, case in numbered:
            if deadline is not None and time.monotonic() > deadline:
                return
            begun = time.monotonic()
            headers = {"content-type": "application/json"}
            try:
                response = await client.post(case.path, content=case.content(), headers=headers)
            except httpx.HTTPError as error:
                shown = json.dumps(case.body)[:600]
                findings.faults.append(f"case {number} {case.path} {shown}: {type(error).__name__} {error}")
                if server.process.poll() is not None:
                    return
                continue
            judge(number, case, response.status_code, response.text, time.monotonic() - begun, findings)

    async def run() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
            await asyncio.gather(*(work(client) for _ in range(workers)))

    asyncio.run(run())
    return findings


def ask(prompt: str, seed: int, **more: Any) -> dict[str, Any]:
    """The body of a completion that returns its ids."""
    return {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": 24,
        "seed": seed,
        "return_token_ids": True,
        **more,
    }


def mixed(number: int) -> dict[str, Any]:
    """The n-th of the requests whose ids are compared: of several algorithms, lengths and parameters."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 12},
        {
            "temperature": 0.0,
            "vllm_xargs": {"diffusion_steps": 4, "diffusion_algorithm": "low_confidence_static"},
        },
        {"temperature": 1.0, "vllm_xargs": {"diffusion_algorithm": "threshold", "diffusion_threshold": 0.6}},
        {"temperature": 0.0, "ignore_eos": True, "max_tokens": 60},
        {"temperature": 1.0, "structured_outputs": {"regex": "[1-4]{4}(/[1-4]{4}){3}"}, "max_tokens": 30},
        {"temperature": 1.0, "presence_penalty": 1.0, "bad_words": ["14", "23"]},
    ]
    return ask(PUZZLES[number % len(PUZZLES)], 1000 + number, **kinds[number % len(kinds)])


def longer(body: dict[str, Any]) -> dict[str, Any]:
    """The same, of more KV blocks than all of its kind get at a time; a grammar ends where it ends."""
    return body if "structured_outputs" in body else {**body, "max_tokens": 90, "ignore_eos": True}


async def ids_of(client: httpx.AsyncClient, body: dict[str, Any]) -> list[int]:
    """The ids of a completion."""
    response = await client.post(COMPLETIONS, json=body)
    assert response.status_code == 200, response.text
    ids: list[int] = response.json()["choices"][0]["token_ids"]
    return ids


def all_ids(server: Server, bodies: list[dict[str, Any]], at_a_time: int) -> list[list[int]]:
    """The ids of completions, so many at a time."""

    async def run() -> list[list[int]]:
        gate = asyncio.Semaphore(at_a_time)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:

            async def one(body: dict[str, Any]) -> list[int]:
                async with gate:
                    return await ids_of(client, body)

            return list(await asyncio.gather(*map(one, bodies)))

    return asyncio.run(run())


def abort_some(server: Server, count: int, rng: Any) -> None:
    """Opens streams and drops them: before, in and behind their first events, and in the queue."""

    async def one(client: httpx.AsyncClient) -> None:
        body = {**mixed(rng.randrange(64)), "stream": rng.random() < 0.8, "n": rng.choice([1, 1, 3])}
        wait = rng.choice([0.0, 0.005, 0.02, 0.05, 0.2, 1.0])

        async def read() -> None:
            async with client.stream("POST", COMPLETIONS, json=body) as response:
                async for _ in response.aiter_lines():
                    pass

        task = asyncio.create_task(read())
        await asyncio.sleep(wait)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def run() -> None:
        limits = httpx.Limits(max_connections=None)
        gate = asyncio.Semaphore(24)
        async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:

            async def gated() -> None:
                async with gate:
                    await one(client)

            await asyncio.gather(*(gated() for _ in range(count)))

    asyncio.run(run())


def assert_empty(server: Server, seconds: float = 60) -> None:
    """Nothing runs or waits any more, and no KV block is taken."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    server.wait_for(lambda metrics: not any(metrics.get(name) for name in names), seconds)


def memory(server: Server) -> int:
    """Bytes that the server's processes have, all of them."""
    process = psutil.Process(server.process.pid)
    return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))
