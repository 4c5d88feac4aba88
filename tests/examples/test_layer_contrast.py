# SPDX-License-Identifier: Apache-2.0
"""The loop of ``examples/layer_contrast``, installed, against transformers and the formula."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.cases import random_prompt
from tests.generation_loop.elsewhere import Request, generate, request

LENGTH = 12
LAYER = 2


@cache
def model(folder: str) -> Any:
    """The checkpoint in transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def expected(folder: str, case: Request) -> list[int]:
    """Greedy decoding from the contrast, recomputing everything for every token."""
    reference, ids = model(folder), list(case["prompt"])
    alpha = (case["params"].get("extra_args") or {}).get("contrast_alpha", 0.0)
    for _ in range(LENGTH):
        with torch.inference_mode():
            states = reference.model(torch.tensor([ids]), output_hidden_states=True)
            final = reference.lm_head(states.last_hidden_state[0, -1])
            early = reference.lm_head(reference.model.norm(states.hidden_states[LAYER + 1][0, -1]))
        score = final
        if alpha:
            score = final.log_softmax(-1) - early.log_softmax(-1)
            score[final.softmax(-1) < alpha * final.softmax(-1).max()] = -torch.inf
        ids.append(int(score.argmax()))
    return ids[-LENGTH:]


def contrasted(prompt: tuple[int, ...], alpha: float | None) -> Request:
    """A request; None leaves the parameter out."""
    extra_args = {} if alpha is None else {"extra_args": {"contrast_alpha": alpha}}
    return request([token % 250 for token in prompt], LENGTH, **extra_args)


def batch() -> list[Request]:
    """Several prompts, with and without contrast."""
    alphas = (0.1, None, 0.02, 0.5)
    return [contrasted(random_prompt(n, 93), a) for n, a in zip((1, 9, 40, 70), alphas, strict=True)]


def settings(folder: str) -> dict[str, Any]:
    """The engine's."""
    return {
        "model": folder,
        "generation_loop": "layer_contrast",
        "additional_config": {"contrast_layer": LAYER},
    }


def test_ids_are_the_references(installed: Path, qwen3: str) -> None:
    cases = batch()
    together, alone, refused = generate(
        [cases, cases[2:3], [contrasted((1, 2), 2.0)]],
        installed=installed,
        max_num_batched_tokens=32,  # Prompts come in chunks.
        **settings(qwen3),
    )
    for result, case in zip(together, cases, strict=True):
        assert result["token_ids"] == expected(qwen3, case), case
    assert alone[0] == together[2]
    assert "contrast_alpha=2.0 must be a number from 0 (off) to 1" in refused[0]["refused"]


def test_contrast_matters(qwen3: str) -> None:
    cases = [case for case in batch() if "extra_args" in case["params"]]
    assert any(expected(qwen3, c) != expected(qwen3, contrasted(c["prompt"], None)) for c in cases)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compilation_config": {"cudagraph_mode": "FULL"}}, "cudagraph_mode=FULL replays model calls"),
        ({"compilation_config": {"mode": 3}}, "compilation hides"),
        ({"additional_config": {"contrast_layer": 3}}, "contrast_layer=3 must be 0 to 2"),
    ],
)
def test_what_would_bypass_it_is_refused(
    options: dict[str, Any], message: str, installed: Path, qwen3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.syspath_prepend(str(installed))
    with pytest.raises(ValueError, match=message):
        EngineArgs(**(settings(qwen3) | options)).create_engine_config()


def test_graphs_are_off_by_themselves(installed: Path, qwen3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.engine.arg_utils import EngineArgs

    monkeypatch.syspath_prepend(str(installed))
    config = EngineArgs(**settings(qwen3)).create_engine_config()
    assert config.compilation_config.cudagraph_mode.name == "NONE"
    assert config.use_v2_model_runner
