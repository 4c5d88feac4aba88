# SPDX-License-Identifier: Apache-2.0
"""The policy of ``examples/unmasking_policy``, installed, against the plain reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.cases import GOLDEN_SDAR, random_prompt
from tests.generation_loop.elsewhere import Request, generate, request
from tests.reference import sdar
from tests.warm import ROOT

PROMPTS = [random_prompt(length, 90) for length in (1, 7, 20, 33)]
BLOCK, LENGTH = 16, 40
SETTINGS: dict[str, Any] = {
    "model": str(GOLDEN_SDAR),
    "diffusion_config": {"block_length": BLOCK, "algorithm": "calm_policy.Calm"},
}


def requests(algorithm: str) -> list[Request]:
    """Requests of several thresholds."""
    keys = {"diffusion_algorithm": algorithm, "diffusion_block_length": BLOCK}
    return [
        request(list(prompt), LENGTH, extra_args=keys | {"diffusion_threshold": threshold})
        for prompt, threshold in zip(PROMPTS, (0.0, 0.3, 0.6, 1.0), strict=True)
    ]


def calm(
    algorithm: str,
    confidence: torch.Tensor,
    entropy: torch.Tensor,
    masked: torch.Tensor,
    n: int,
    threshold: float,
    entropy_bound: float,
) -> list[int]:
    """The same choice in plain Python."""
    rising = sorted(masked.nonzero()[:, 0].tolist(), key=lambda i: (float(entropy[i]), i))
    return rising[:1] + [i for i in rising[1:] if entropy[i] < threshold]


def expected(case: Request) -> list[int]:
    """What the reference generates with that choice."""
    threshold = case["params"]["extra_args"]["diffusion_threshold"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdar, "_select", calm)
        reference = sdar.SdarReference(GOLDEN_SDAR)
        return reference.generate(case["prompt"], LENGTH, BLOCK, BLOCK, "calm", threshold).output_ids


def test_it_is_short() -> None:
    source = (ROOT / "examples" / "unmasking_policy" / "calm_policy.py").read_text()
    assert len(source.splitlines()) < 30


def test_ids_are_the_references(installed: Path) -> None:
    by_name, by_path, unknown = generate(
        [requests("calm"), requests("calm_policy.Calm"), requests("this.That")],
        installed=installed,
        **SETTINGS,
    )
    assert [r["token_ids"] for r in by_name] == [expected(case) for case in requests("calm")]
    assert by_path == by_name
    assert "diffusion_algorithm='this.That' names a module that is not imported" in unknown[0]["refused"]
