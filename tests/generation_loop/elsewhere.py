# SPDX-License-Identifier: Apache-2.0
"""Runs requests in an engine of its own, in another process, with plug-ins installed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests import warm

Request = dict[str, Any]
Result = dict[str, Any]


def request(prompt: list[int], max_tokens: int = 8, **params: Any) -> Request:
    """A greedy request, as data."""
    return {"prompt": prompt, "params": {"temperature": 0.0, "max_tokens": max_tokens} | params}


def generate(
    calls: list[list[Request]],
    env: dict[str, str] | None = None,
    installed: Path | None = None,
    **settings: Any,
) -> list[list[Result]]:
    """Makes an engine and calls ``LLM.generate``.

    Args:
        calls: Requests of each call.
        env: Environment variables to add.
        installed: Folder that plug-ins were installed into.
        **settings: Engine arguments.

    Returns:
        For every request ``token_ids``, ``finish_reason``, ``stop_reason``, or ``refused``.
    """
    done = start(calls, env, installed, **settings)
    assert done.returncode == 0, done.stderr[-6000:]
    results: list[list[Result]] = json.loads(done.stdout.splitlines()[-1])
    return results


def start(
    calls: list[list[Request]],
    env: dict[str, str] | None = None,
    installed: Path | None = None,
    **settings: Any,
) -> subprocess.CompletedProcess[str]:
    """As :func:`generate`; the process as it ended."""
    path = os.pathsep.join(filter(None, [str(installed or ""), os.environ.get("PYTHONPATH")]))
    common = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 8, "seed": 0}
    return warm.run(
        "tests.generation_loop.run_requests",
        input=json.dumps({"settings": common | settings, "calls": calls}),
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": path, **(env or {})},
        timeout=400,
    )
