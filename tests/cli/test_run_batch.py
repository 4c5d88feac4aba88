# SPDX-License-Identifier: Apache-2.0
"""``vllm run-batch``: a file of requests, each with parameters of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm.v1.diffusion import bundled_path


def request(name: str, **parameters: Any) -> dict[str, Any]:
    """A line of the file."""
    body = {
        "model": "bundled",
        "messages": [{"role": "user", "content": "sort 3142="}],
        "max_tokens": 16,
        "temperature": 0,
        "vllm_xargs": {"diffusion_stats": True} | parameters,
    }
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.mark.every_mode
def test_each_request_has_its_own_parameters(tmp_path: Path) -> None:
    given = [
        request("static", diffusion_algorithm="low_confidence_static", diffusion_steps=4),
        request("wrong", diffusion_threshold=9),
        request("defaults"),
    ]
    questions, answers = tmp_path / "questions", tmp_path / "answers"
    questions.write_text("".join(json.dumps(one) + "\n" for one in given))
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "run-batch", "-i", str(questions)]
    command += ["-o", str(answers), "--model", str(bundled_path("sdar")), "--served-model-name", "bundled"]
    done = subprocess.run(
        [*command, "--dtype", "float32", "--enforce-eager"],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = {one["custom_id"]: one for one in map(json.loads, answers.read_text().splitlines())}
    choices = {name: found[name]["response"]["body"]["choices"][0] for name in ("static", "defaults")}
    assert {choice["message"]["content"] for choice in choices.values()} == {"1234"}
    # Four steps of a block of 16 unmask four tokens each; an answer of five has ended after two.
    assert choices["static"]["diffusion"]["steps"] == 2
    assert choices["defaults"]["diffusion"]["steps"] == 1
    assert found["wrong"]["error"]["error"]["param"] == "diffusion_threshold"
