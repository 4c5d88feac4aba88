# SPDX-License-Identifier: Apache-2.0
"""What the tests of golden checkpoints share: their cases, batches of requests, altered copies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def cases_of(folder: Path, name: str = "cases") -> list[dict[str, Any]]:
    """The cases of a golden checkpoint: prompts, published parameters, published ids."""
    cases: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())["cases"]
    assert cases
    return cases


def check(result: dict[str, Any], case: dict[str, Any]) -> None:
    """Ids and order of unmasking of a request of golden SDAR are the published ones."""
    stops = case["params"]["stopping_criteria_idx"]
    want = case["output_ids"]
    if stops:
        # The published code stops behind the block; a server cuts at the token.
        want = want[: next(i for i, t in enumerate(want) if t in stops) + 1]
    assert result["token_ids"] == want
    assert result["unmask_steps"] == case["unmask_step"][: len(want)]
    assert result["steps"] == case["num_forward_detail"]["denoise"]
    if case["params"]["remasking_strategy"].startswith("low_confidence"):
        recorded = case["unmask_conf"][: len(want)]
        assert result["probabilities"] == pytest.approx(recorded, abs=1e-4)


def generate(llm: Any, requests: list[tuple[list[int], Any]]) -> list[Any]:
    """Completions of requests in one batch, each a prompt and its sampling parameters."""
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    return [o.outputs[0] for o in llm.generate(prompts, [how for _, how in requests], use_tqdm=False)]


def altered_configuration(
    checkpoint: Path, folder: Path, settings: dict[str, Any] | None = None, **members: Any
) -> Any:
    """An engine's configuration for a checkpoint whose ``config.json`` says something else.

    Args:
        checkpoint: The golden checkpoint.
        folder: An empty folder; gets the altered ``config.json``.
        settings: Engine arguments.
        **members: Members of the file that are replaced or added.
    """
    from vllm.engine.arg_utils import EngineArgs

    config = json.loads((checkpoint / "config.json").read_text()) | members
    (folder / "config.json").write_text(json.dumps(config))
    common: dict[str, Any] = {"skip_tokenizer_init": True, "dtype": "float32", "max_model_len": 256}
    return EngineArgs(model=str(folder), **common | (settings or {})).create_engine_config()
