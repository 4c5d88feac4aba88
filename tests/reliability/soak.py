# SPDX-License-Identifier: Apache-2.0
"""Hours of changing load on a server of each loop: streams, aborts, grammars, adapters, wrong bodies."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.reliability.fuzz import COMPLETIONS, Fuzzer
from tests.reliability.world import (
    SHORT_OF_BLOCKS,
    abort_some,
    all_ids,
    assert_empty,
    fuzz,
    longer,
    memory,
    mixed,
    world,
)
from tests.server.conftest import MODEL, Server

LOOPS = {"block_causal": "sdar", "bidirectional": "llada"}
"""The bundled model of each loop."""
ADAPTERS = 3
"""Adapters per server, one more than it holds at a time: they replace each other."""
GROWTH = 1.05
"""Memory of the last third of the rounds, over that of the second: beyond it, it grew."""


def write_adapter(checkpoint: str | Path, target: Path, seed: int, rank: int = 4) -> None:
    """Writes an adapter of random weights for the query and value projections of a checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(Path(checkpoint) / "model.safetensors", "pt") as weights:
        for name in sorted(weights.keys()):
            module = name.removesuffix(".weight")
            if not module.endswith(("q_proj", "v_proj")):
                continue
            rows, columns = weights.get_slice(name).get_shape()
            a = torch.randn(rank, columns, generator=generator) / columns**0.5
            b = torch.randn(rows, rank, generator=generator) / 8
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b
    assert tensors
    target.mkdir(parents=True)
    save_file(tensors, target / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    (target / "adapter_config.json").write_text(json.dumps(config))


def of_a_model(number: int) -> dict[str, Any]:
    """The n-th mixed request: half of the base model, half of an adapter."""
    adapter = number // 8 % (2 * ADAPTERS)  # Eight kinds of requests.
    return mixed(number) | ({"model": f"own{adapter}"} if adapter < ADAPTERS else {})


@dataclass
class Load:
    """One server under load.

    Attributes:
        server: The server.
        first: Ids of the watched requests, alone, from before the load.
        sizes: Bytes after each round.
        faults: What must not have come.
        sent: How many requests were made.
    """

    server: Server
    first: list[list[int]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    sent: int = 0

    def watched(self) -> list[dict[str, Any]]:
        """Requests of every kind, of every adapter and of none."""
        return [of_a_model(n) for n in range(8 * 2 * ADAPTERS) if n % 4 == n // 8 % 4]

    def round(self, rng: random.Random, fuzzer: Fuzzer) -> None:
        """A burst, whole and streamed; disconnects; wrong bodies; the watched requests among others."""
        count = rng.choice([4, 16, 48])
        bodies = [of_a_model(rng.randrange(10**6)) for _ in range(count)]
        if rng.random() < 0.5:
            bodies = [longer(body) for body in bodies]
        whole = all_ids(self.server, bodies, rng.choice([1, 8, 48]))
        some = rng.sample(range(count), 4)
        if (streamed := streamed_ids(self.server, [bodies[n] for n in some])) != [whole[n] for n in some]:
            self.faults.append(f"streamed ids differ: {[bodies[n] for n in some]} {streamed}")
        abort_some(self.server, 10, rng)
        self.faults += fuzz(self.server, (fuzzer.case() for _ in range(40))).faults
        again = all_ids(self.server, self.watched(), 16)
        for body, before, now in zip(self.watched(), self.first, again, strict=True):
            if before != now:
                self.faults.append(f"ids changed: {body} {before} {now}")
        self.sent += count + 4 + 10 + 40 + len(again)
        assert_empty(self.server, 120)
        self.sizes.append(memory(self.server))

    def report(self) -> dict[str, Any]:
        """Its figures."""
        third = max(1, len(self.sizes) // 3)
        plateau = statistics.median(self.sizes[third : 2 * third] or self.sizes)
        end = statistics.median(self.sizes[-third:])
        metrics = self.server.metrics()
        return {
            "requests": self.sent,
            "rounds": len(self.sizes),
            "preemptions": int(metrics.get("vllm:num_preemptions_total", 0)),
            "tracebacks": self.server.log.read_text(errors="replace").count("Traceback"),
            "mib_after_first_round": self.sizes[0] >> 20,
            "mib_second_third": int(plateau) >> 20,
            "mib_last_third": int(end) >> 20,
            "mib_last_round": self.sizes[-1] >> 20,
            "faults": self.faults[:8],
            "failed": bool(self.faults) or end > GROWTH * plateau,
        }


def streamed_ids(server: Server, bodies: list[dict[str, Any]]) -> list[list[int]]:
    """The ids of streams, all at a time."""

    async def one(client: httpx.AsyncClient, body: dict[str, Any]) -> list[int]:
        ids: list[int] = []
        async with client.stream("POST", COMPLETIONS, json=body | {"stream": True}) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:]).get("choices", ()):
                        ids += choice.get("token_ids") or ()
        return ids

    async def run() -> list[list[int]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
            return list(await asyncio.gather(*(one(client, body) for body in bodies)))

    return asyncio.run(run())


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rounds of load on both servers by turns; memory after each."""
    from vllm.v1.diffusion import bundled_path

    rng = random.Random(args.seed)
    fuzzer = Fuzzer(args.seed, MODEL)
    loads: dict[str, Load] = {}
    with ExitStack() as stack:
        for loop, name in LOOPS.items():
            adapters = [f"own{n}={folder / loop / str(n)}" for n in range(ADAPTERS)]
            for n in range(ADAPTERS):
                write_adapter(bundled_path(name), folder / loop / str(n), n)
            options = ["--enable-lora", "--max-loras", str(ADAPTERS - 1), "--max-lora-rank", "8"]
            options += ["--max-cpu-loras", str(ADAPTERS - 1), "--lora-modules", *adapters]
            entered = world(folder / f"{loop}.log", *SHORT_OF_BLOCKS, *options, model=bundled_path(name))
            loads[loop] = Load(stack.enter_context(entered))
        for load in loads.values():
            load.first = all_ids(load.server, load.watched(), 1)
        begun = time.monotonic()
        while (passed := time.monotonic() - begun) < 60 * args.minutes:
            for loop, load in loads.items():
                load.round(rng, fuzzer)
                state = f"{passed:.0f} s, {loop}: {load.sent} requests, {load.sizes[-1] >> 20} MiB"
                print(state, load.faults[-1:], file=sys.stderr, flush=True)
        made = {loop: load.report() for loop, load in loads.items()}
    return {"minutes": args.minutes, **made, "failed": any(one["failed"] for one in made.values())}
