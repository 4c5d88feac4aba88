# SPDX-License-Identifier: Apache-2.0
"""Weights that change while a model is served, as docs/training.md says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]

_CHECK = """
at, probabilities = 0, []
for output in [result.outputs[-1]]:
    steps = len({s for s, _ in output.diffusion.trace})
    rows = zip(taken[-steps:], unmasked[-steps:], strict=True)
    computed = torch.stack([row.exp() * mask for row, mask in rows]).sum(0)[-len(output.token_ids):]
    reported = torch.tensor([p for _, p in output.diffusion.trace])
    torch.testing.assert_close(computed.detach(), reported, atol=1e-4, rtol=0)
print("same probabilities")
"""


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=_ROOT, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_answers_are_those_of_a_fresh_engine(family: str) -> None:
    said = json.loads(_run("-m", "tests.engine.run_updates", family).splitlines()[-1])
    assert said["updated"] == said["fresh"] and said["old"] == said["back"]
    assert all(new != old for new, old in zip(said["updated"], said["old"], strict=True))
    assert said["updated while others ran"] == said["fresh"]
    assert said["lengths of those that ran"] == [64] * 4


def test_the_loop_of_the_documentation() -> None:
    """Two iterations of it; the trainer's probabilities are those that the engine reports."""
    code = (_ROOT / "docs/training.md").read_text("utf-8").split("```python\n")[-1].split("```")[0]
    assert len(code.splitlines()) < 60
    said = _run("-c", code.replace("range(30)", "range(2)") + _CHECK)
    assert "1: 0." in said and "same probabilities" in said
