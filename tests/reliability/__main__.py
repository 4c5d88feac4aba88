# SPDX-License-Identifier: Apache-2.0
"""The long forms of the reliability tests: ``python -m tests.reliability COMMAND``.

Each prints one line of JSON with its figures, which ``docs/reliability.md`` keeps, and fails where something
that must hold did not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.reliability import families, faults, sanitize, schema, soak
from tests.reliability.fuzz import COMPLETIONS, Fuzzer
from tests.reliability.world import (
    PUZZLES,
    SHORT_OF_BLOCKS,
    abort_some,
    all_ids,
    ask,
    assert_empty,
    fuzz,
    longer,
    mixed,
    world,
)
from tests.server.conftest import MODEL


def _model(name: str) -> str:
    from vllm.v1.diffusion import bundled_path

    return bundled_path(name) if name in ("sdar", "llada") else name


def run_fuzz(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Cases of the seeded fuzzer over both endpoints."""
    with world(folder / "log", *SHORT_OF_BLOCKS, model=_model(args.model)) as server:
        fuzzer = Fuzzer(args.seed, MODEL)
        cases = (fuzzer.case() for _ in range(args.requests))
        findings = fuzz(server, cases, args.minutes)
        assert_empty(server)
        dead = server.process.poll() is not None
        tracebacks = server.log.read_text().count("Traceback")
    report = findings.report() | {"engine_deaths": int(dead), "tracebacks": tracebacks}
    report["most_common_without_a_field"] = findings.unnamed.most_common(8)
    return report | {"failed": dead or bool(findings.faults)}


def run_pressure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ids of mixed requests, alone and all at a time, with too few KV blocks."""
    with world(folder / "log", *SHORT_OF_BLOCKS, model=_model(args.model)) as server:
        bodies = [longer(mixed(n)) for n in range(args.requests)]
        alone = all_ids(server, bodies, 1)
        before = server.metrics().get("vllm:num_preemptions_total", 0)
        batched = all_ids(server, bodies, 64)
        preemptions = server.metrics()["vllm:num_preemptions_total"] - before
        assert_empty(server)
    different = sum(a != b for a, b in zip(alone, batched, strict=True))
    return {
        "requests": len(bodies),
        "preemptions": int(preemptions),
        "different_ids": different,
        # A bidirectional request is admitted with the KV blocks of its whole answer, so none is preempted.
        "failed": bool(different) or (args.model == "sdar" and not preemptions),
    }


def run_aborts(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Disconnects in every phase."""
    with world(folder / "log", *SHORT_OF_BLOCKS, model=_model(args.model)) as server:
        before = all_ids(server, [mixed(n) for n in range(8)], 1)
        abort_some(server, args.requests, random.Random(args.seed))
        assert_empty(server)
        same = all_ids(server, [mixed(n) for n in range(8)], 1) == before
    return {"aborts": args.requests, "left_behind": 0, "same_ids_after": same, "failed": not same}


def run_neighbours(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Twenty small requests alone and beside the costliest permitted one."""
    from vllm.v1.diffusion.config import LIMITS

    choices = [f"{i:012d}" for i in range(3000)]
    names = {f"name_{i}": {"type": "string", "maxLength": 1000} for i in range(250)}
    steps = {"diffusion_algorithm": "maskgit_plus", "diffusion_steps": LIMITS["steps_limit"]}
    costly: dict[str, dict[str, Any]] = {
        "steps": {"vllm_xargs": steps, "ignore_eos": True, "max_tokens": 200},
        "steps_and_n": {"vllm_xargs": steps, "ignore_eos": True, "max_tokens": 200, "n": 16},
        "bad_words": {"bad_words": ["1" * 60 + str(i) for i in range(10, 18)], "max_tokens": 200, "n": 8},
        "grammar": {"structured_outputs": {"choice": choices}},
        "schema": {"structured_outputs": {"json": {"type": "object", "properties": names}}, "n": 16},
        # As many counts as all answers of a request may have.
        "counts": {"structured_outputs": {"regex": "((a?){1,8}){1,8}"}, "n": 16, "max_tokens": 200},
    }
    small = [ask(PUZZLES[n % len(PUZZLES)], n, temperature=0.0, max_tokens=24) for n in range(20)]
    figures: dict[str, Any] = {}
    with world(folder / "log", "--max-num-seqs", "32", model=_model(args.model)) as server:
        all_ids(server, small, 20)
        alone = statistics.median(_seconds_of(server, small, None) for _ in range(3))
        figures["alone_seconds"] = round(alone, 2)
        for name, more in costly.items():
            body = {**ask(PUZZLES[2], 7), **more}
            figures[name] = round(_seconds_of(server, small, body) / alone, 2)
    worst = max(figures[name] for name in costly)
    return {"times_alone": figures, "worst": worst, "failed": worst > 3}


def _seconds_of(server: Any, small: list[dict[str, Any]], beside: dict[str, Any] | None) -> float:
    async def run() -> float:
        async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
            other = None
            if beside is not None:
                other = asyncio.create_task(client.post(COMPLETIONS, json=beside))
                await asyncio.sleep(0.3)
            begun = time.monotonic()
            answers = await asyncio.gather(*(client.post(COMPLETIONS, json=body) for body in small))
            seconds = time.monotonic() - begun
            assert all(answer.status_code == 200 for answer in answers), [a.text[:200] for a in answers]
            if other is not None:
                if not other.done():
                    other.cancel()
                await asyncio.gather(other, return_exceptions=True)
        return seconds

    seconds = asyncio.run(run())
    assert_empty(server, 120)
    return seconds


COMMANDS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "fuzz": run_fuzz,
    "pressure": run_pressure,
    "aborts": run_aborts,
    "neighbours": run_neighbours,
    "soak": soak.run,
    "families": families.run,
    "faults": faults.run,
    "schema": schema.run,
    "sanitize": sanitize.run,
}
_REQUESTS = {"fuzz": 20000, "pressure": 500, "aborts": 600, "families": 100, "schema": 100, "sanitize": 2000}


def main() -> int:
    """Runs a command; the exit status says whether all held."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument(
        "--requests", type=int, help="requests, or cases of sanitize, or cases per endpoint of schema"
    )
    parser.add_argument("--minutes", type=float, help="at most; of soak, exactly (60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="sdar", help="sdar, llada (bundled), or a folder")
    parser.add_argument("--only", help="one fault, or one family")
    parser.add_argument("--tool", default="schemathesis", help="the program, of schema")
    args = parser.parse_args()
    args.requests = args.requests or _REQUESTS.get(args.command, 0)
    if args.command == "soak":
        args.minutes = args.minutes or 60.0
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = COMMANDS[args.command](args, Path(folder))
    report = {"command": args.command, "model": args.model, "seed": args.seed, **report}
    print(json.dumps(report | {"seconds": round(time.monotonic() - begun)}))
    return int(report["failed"])


if __name__ == "__main__":
    sys.exit(main())
