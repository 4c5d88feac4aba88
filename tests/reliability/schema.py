# SPDX-License-Identifier: Apache-2.0
"""schemathesis against the schema that the server itself publishes.

The program is no dependency of ours: it is a package of its own, in an environment of its own, named by
``--tool``. Only answers with status 5xx and answers above 30 seconds are findings here. That a refusal is of
the schema's kind is upstream's: the schema leaves out most of what its endpoints answer.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.reliability.world import (
    LONGEST_HONEST,
    SHORT_OF_BLOCKS,
    UNWRITABLE,
    all_ids,
    assert_empty,
    mixed,
    world,
)


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Cases from the schema of every endpoint; what was answered, by endpoint and status."""
    from vllm.v1.diffusion import bundled_path

    model = bundled_path(args.model) if args.model in ("sdar", "llada") else args.model
    with world(folder / "log", *SHORT_OF_BLOCKS, model=model) as server:
        before = all_ids(server, [mixed(n) for n in range(8)], 1)
        command = [args.tool, "run", server.url + "/openapi.json", "--checks", "not_a_server_error"]
        command += ["--max-examples", str(args.requests), "--seed", str(args.seed), "--no-shrink"]
        command += ["--phases", "coverage,fuzzing", "--continue-on-failure", "--workers", "4"]
        command += ["--suppress-health-check", "all", "--request-timeout", "120", "--no-color"]
        command += ["--report", "har", "--report-har-path", str(folder / "calls.har")]
        for path in ("/metrics", "/load"):
            command += ["--exclude-path", path]
        if args.minutes:
            command += ["--max-time", str(round(60 * args.minutes))]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        (folder / "printed").write_text(done.stdout + done.stderr)
        dead = server.process.poll() is not None
        if not dead:
            assert_empty(server, 120)
        same = not dead and all_ids(server, [mixed(n) for n in range(8)], 1) == before
        tracebacks = server.log.read_text(errors="replace").count("Traceback")
    if not (folder / "calls.har").exists():
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
    report = judged(json.loads((folder / "calls.har").read_text())["log"]["entries"])
    report |= {"engine_deaths": int(dead), "tracebacks": tracebacks, "same_ids_after": same}
    return report | {"failed": report["failed"] or not same}


def judged(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts the calls by endpoint and status; every error of the server's is shown once per message."""
    statuses: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    errors: dict[str, dict[str, Any]] = {}
    unwritable, slowest = 0, 0.0
    for call in calls:
        status, text = call["response"]["status"], call["response"]["content"].get("text") or ""
        path = re.sub(
            "^/v1/responses/.*?(/cancel)?$", r"/v1/responses/ID\1", urlsplit(call["request"]["url"]).path
        )
        statuses[path][status] += 1
        slowest = max(slowest, call["time"] / 1000)
        if UNWRITABLE in text:
            unwritable += 1
        elif status >= 500:
            body = (call["request"].get("postData") or {}).get("text", "")[:400]
            shown = errors.setdefault(f"{path} {status} {text[:200]}", {"count": 0, "body": body})
            shown["count"] += 1
    total: collections.Counter[int] = sum(statuses.values(), collections.Counter())
    return {
        "cases": len(calls),
        "statuses": {str(k): v for k, v in sorted(total.items())},
        "endpoints": {path: {str(k): v for k, v in sorted(one.items())} for path, one in statuses.items()},
        "errors": errors,
        "unwritable_grammars": unwritable,
        "slowest_seconds": round(slowest, 2),
        "failed": bool(errors) or not calls or slowest > LONGEST_HONEST,
    }
