# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of ``vllm serve`` with dummy weights: batches of requests that arrive at once.

    python -m benchmarks.gpu.serving --shape sdar-8b --batch 1 64 256 --settings '{"data_parallel_size": 4}'

Prompts are token ids, and no text is made of the answers: neither side needs a tokenizer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp

from benchmarks.gpu.engine import DEFAULTS, SEED
from benchmarks.gpu.machine import describe
from benchmarks.gpu.shapes import SHAPES, write_config

START_SECONDS = 400


def flags(settings: dict[str, Any]) -> list[str]:
    """Engine arguments as options of ``vllm serve``."""
    options: list[str] = []
    for name, value in settings.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{dashed}" if value else f"--no-{dashed}")
        else:
            options += [f"--{dashed}", value if isinstance(value, str) else json.dumps(value)]
    return options


@contextmanager
def serving(model: str, settings: dict[str, Any]) -> Iterator[str]:
    """Runs a server until the block ends; gives its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, "--skip-tokenizer-init"]
    command += ["--served-model-name", "shape", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--disable-uvicorn-access-log", *flags(settings)]
    process = subprocess.Popen(command, stdout=sys.stderr, env={**os.environ})
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_healthy(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            _get(url + "/health")
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start") from None
            time.sleep(0.5)


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:
        return str(response.read().decode())


def requests_by_engine(url: str) -> dict[str, int]:
    """How many requests each engine behind the server has answered."""
    found: dict[str, int] = {}
    pattern = r'^vllm:request_success_total\{.*?engine="(\d+)".*?\} (\S+)$'
    for engine, count in re.findall(pattern, _get(url + "/metrics"), re.M):
        found[engine] = found.get(engine, 0) + int(float(count))
    return found


async def burst(url: str, prompts: list[list[int]], fields: dict[str, Any]) -> float:
    """Sends all requests at once; returns the seconds until the last answer was there."""
    limit = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=limit, timeout=timeout) as session:

        async def ask(prompt: list[int]) -> None:
            async with session.post(f"{url}/v1/completions", json=fields | {"prompt": prompt}) as response:
                answer = await response.json()
                assert response.status == 200, answer
                assert answer["usage"]["completion_tokens"] == fields["max_tokens"], answer["usage"]

        begin = time.perf_counter()
        await asyncio.gather(*map(ask, prompts))
        return time.perf_counter() - begin


def main() -> None:
    """Runs one server and prints a line per batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="sdar-8b")
    parser.add_argument("--block", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="0: autoregressive")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--config", type=json.loads, default={}, help="members of config.json, JSON")
    parser.add_argument("--settings", type=json.loads, default={}, help="engine arguments, JSON")
    chosen = parser.parse_args()
    settings: dict[str, Any] = DEFAULTS | {"max_num_seqs": max(chosen.batch)} | chosen.settings
    fields: dict[str, Any] = {"model": "shape", "max_tokens": chosen.tokens, "temperature": 0}
    fields |= {"ignore_eos": True, "seed": SEED}
    if chosen.steps:
        settings.setdefault("diffusion_config", {"block_length": chosen.block})
        schedule = {"algorithm": "low_confidence_static", "block_length": chosen.block, "steps": chosen.steps}
        fields["vllm_xargs"] = {f"diffusion_{name}": value for name, value in schedule.items()}
    print(json.dumps(describe()), flush=True)
    rng = random.Random(SEED)
    vocabulary = min(100_000, (SHAPES[chosen.shape] | chosen.config)["vocab_size"] - 100)
    with serving(write_config(chosen.shape, **chosen.config), settings) as url:
        for batch in chosen.batch:
            seconds = []
            for _ in range(1 + chosen.repeats):
                prompts = [
                    [rng.randrange(1000, vocabulary) for _ in range(chosen.prompt)] for _ in range(batch)
                ]
                seconds.append(asyncio.run(burst(url, prompts, fields)))
            median = statistics.median(seconds[1:])
            line: dict[str, Any] = {
                "shape": chosen.shape,
                "served": True,
                "steps": chosen.steps,
                "batch": batch,
            }
            line |= {
                "tokens_per_second": round(batch * chosen.tokens / median, 1),
                "seconds": round(median, 3),
            }
            print(json.dumps(line | {"requests_by_engine": requests_by_engine(url)}), flush=True)


if __name__ == "__main__":
    main()
