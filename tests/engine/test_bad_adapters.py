# SPDX-License-Identifier: Apache-2.0
"""An adapter that cannot be served: its requests are refused, all others are served as before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.engine.cases import Case, random_prompt
from tests.engine.conftest import SETTINGS
from tests.engine.published import PUBLISHED

CASE = Case(random_prompt(7, 8), 16, "low_confidence_static", 8, steps=4)


def configured(**changes: Any) -> Callable[[Path], None]:
    """Changes an adapter's configuration."""

    def change(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def weighed(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    """Changes an adapter's weights."""

    def write(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file(change(load_file(file)), file)

    return write


def _another_module(weights: dict[str, Any]) -> dict[str, Any]:
    name = next(iter(weights))
    return weights | {name.replace(name.split(".")[-3], "router"): weights[name].clone()}


def _another_width(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: weight[..., :-1].contiguous() for name, weight in weights.items()}


def _cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


REFUSED = {
    "DoRA": (configured(use_dora=True), "DoRA"),
    "modules to save": (configured(modules_to_save=["lm_head"]), "modules_to_save"),
    "another kind": (configured(peft_type="IA3"), "peft_type='IA3'"),
    "rank": (configured(r=64), "rank 64"),
    "no rank": (configured(r=0), "positive"),
}
VECTOR = "base_model.model.lora_magnitude_vector"
FAILED: dict[str, Callable[[Path], None]] = {
    "another module": weighed(_another_module),
    "a vector": weighed(lambda weights: weights | {f"{VECTOR}.weight": 1 * next(iter(weights.values()))}),
    "another width": weighed(_another_width),
    "a part of the file": _cut,
    "no weights": lambda folder: (folder / "adapter_model.safetensors").unlink(),
}


@pytest.mark.parametrize("family", ["LLaDA", "SDAR"])
def test_only_its_requests_are_refused(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    published = PUBLISHED[family]
    folder = published.write(tmp_path / "model")
    deltas = published.adapter(folder, tmp_path / "good", 1)
    assert CASE.block_length
    how = (CASE.block_length, CASE.steps or 0, CASE.algorithm)
    reference = published.merged(folder, deltas)
    want = reference.generate(list(CASE.prompt), CASE.max_tokens, *how).output_ids
    llm: Any = LLM(
        **SETTINGS
        | {"model": str(folder), "diffusion_config": {"block_length": 8}}
        | {"enable_lora": True, "max_loras": 1, "max_lora_rank": 8}
    )
    numbers = iter(range(1, 100))

    def ask(path: Path) -> Any:
        adapter = LoRARequest(path.name, next(numbers), str(path))
        prompt = {"prompt_token_ids": list(CASE.prompt)}
        return llm.generate(prompt, CASE.sampling_params(), lora_request=adapter, use_tqdm=False)[0].outputs[
            0
        ]

    for i, (name, (change, why)) in enumerate(REFUSED.items()):
        shutil.copytree(tmp_path / "good", bad := tmp_path / f"refused{i}")
        change(bad)
        with pytest.raises(ValueError, match=f"lora_request='refused{i}' cannot be served: .*{why}"):
            ask(bad)
        assert list(ask(tmp_path / "good").token_ids) == want, name
    for i, (name, spoil) in enumerate(FAILED.items()):
        shutil.copytree(tmp_path / "good", bad := tmp_path / f"failed{i}")
        spoil(bad)
        output = ask(bad)
        assert output.finish_reason == "error" and not output.token_ids, name
        assert f"lora_request='failed{i}' cannot be served: " in output.stop_reason
        assert list(ask(tmp_path / "good").token_ids) == want, name
