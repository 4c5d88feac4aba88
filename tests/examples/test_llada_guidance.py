# SPDX-License-Identifier: Apache-2.0
"""The loop of ``examples/llada_guidance``, installed, against a plain guided LLaDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engine.cases import random_prompt
from tests.generation_loop.elsewhere import Request, generate, request
from tests.reference.bidirectional import GuidedReference, LladaReference
from tests.warm import ROOT

MODEL = ROOT / "tests" / "golden" / "llada"
SETTINGS: dict[str, Any] = {"model": str(MODEL), "generation_loop": "llada_guidance"}
LENGTH, BLOCK, STEPS = 24, 8, 4
SCALES = (0.0, 0.5, 1.5, 4.0)


def guided(prompt: tuple[int, ...], scale: float | None, cache: str = "none", **params: Any) -> Request:
    """A request with guidance."""
    extra_args = {
        "diffusion_block_length": BLOCK,
        "diffusion_steps": STEPS,
        "diffusion_cache": cache,
    }
    if scale is not None:
        extra_args["cfg_scale"] = scale
    return request(list(prompt), LENGTH, extra_args=extra_args, **params)


def batch() -> list[Request]:
    """Several prompts and scales together."""
    return [guided(random_prompt(n, 91), s) for n, s in zip((1, 9, 33, 60), SCALES, strict=True)]


def expected(case: Request) -> list[int]:
    """What the reference generates."""
    scale = case["params"]["extra_args"].get("cfg_scale", 0.0)
    reference = GuidedReference(LladaReference(MODEL), scale, len(case["prompt"]))
    return reference.generate(case["prompt"], LENGTH, BLOCK, STEPS).output_ids


def test_ids_are_the_references(installed: Path) -> None:
    cases = batch()
    warm: dict[str, Any] = {"temperature": 0.8, "seed": 3}
    prompt = random_prompt(20, 92)
    together, alone, plain, warm_plain, warm_zero, warm_guided, warm_again, refused, cached = generate(
        [
            cases,
            cases[2:3],
            [guided(case["prompt"], None) for case in cases],
            [guided(prompt, None, **warm)],
            [guided(prompt, 0.0, **warm)],
            [guided(prompt, 2.0, **warm)],
            [guided(prompt, 2.0, **warm), *cases],
            [guided(prompt, -1.0)],
            [guided(prompt, 2.0, cache="dual")],
        ],
        installed=installed,
        **SETTINGS,
    )
    for result, case in zip(together, cases, strict=True):
        assert result["token_ids"] == expected(case), case
    assert alone[0] == together[2]
    assert [r["token_ids"] for r in plain] == [expected(guided(case["prompt"], None)) for case in cases]
    # Guidance acts before the draw; without it the draw is the built-in loop's.
    assert warm_plain == warm_zero != warm_guided
    assert warm_again[0] == warm_guided[0]
    assert "cfg_scale=-1.0 must be a number of at least 0" in refused[0]["refused"]
    assert "diffusion_cache='dual' keeps the keys and values of one pass" in cached[0]["refused"]


def test_guidance_matters() -> None:
    assert any(expected(c) != expected(guided(c["prompt"], None)) for c in batch())
