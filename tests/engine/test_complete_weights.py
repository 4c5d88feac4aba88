# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that lacks a weight is refused, of whichever kind and family; one that ties it is loaded."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests import warm
from tests.engine import checkpoints
from tests.engine.conftest import GOLDEN
from tests.engine.layouts import LLADA_MOE_QUIRKS

GOLDEN_FOLDERS = (
    "sdar",
    "llada",
    "llada2",
    "dream",
    "a2d-qwen3",
    "a2d-llama",
    "open-dllm",
    "stable-diffcoder",
    "wedlm",
    "dreamon",
)
MADE: dict[str, Any] = {
    "sdar_moe": checkpoints.sdar_moe,
    "fast_dllm_v2": checkpoints.fast_dllm_v2,
    "llada_moe": lambda folder: checkpoints.llada_moe(folder, LLADA_MOE_QUIRKS),
}


def under_the_head(folder: Path) -> Path:
    """A tied checkpoint whose embedding is in the file under its head's name; returns the folder."""
    shutil.copytree(GOLDEN / "a2d-qwen3", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What loading said, by folder and by the weight that was left out."""
    folder = tmp_path_factory.mktemp("weights")
    # The first one has experts: it makes the process groups that they need.
    tasks = [(name, str(write(folder / name))) for name, write in MADE.items()]
    tasks += [(name, str(GOLDEN / name)) for name in GOLDEN_FOLDERS]
    tasks += [("tied", str(under_the_head(folder / "tied")))]
    done = warm.run(
        "tests.engine.load_parts",
        input=json.dumps([tasks, f"file://{folder / 'meeting'}"]),
        env={**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", [*GOLDEN_FOLDERS, *MADE])
def test_a_missing_weight_is_named(name: str, said: dict[str, dict[str, str]]) -> None:
    found = dict(said[name])
    assert found.pop("all") == "loaded"
    assert "has biases that the model" in found.pop("bias")
    assert len(found) > 8
    for missing, answer in found.items():
        assert answer.startswith("The checkpoint lacks weights of the model: "), (missing, answer)


def test_an_embedding_under_the_head_s_name_is_loaded(said: dict[str, dict[str, str]]) -> None:
    """Only the tied head's name is in the file: both weights are what it holds."""
    assert said["tied"] == {"under the head's name": "loaded"}


def test_a_missing_weight_of_diffusion_gemma_is_named() -> None:
    """Every tensor of the decoder is wanted; those of the encoder and of images are not."""
    from safetensors import safe_open

    from vllm.model_executor.models.diffusion_gemma_text import missing_modules

    folder = GOLDEN / "diffusion_gemma"
    kinds = json.loads((folder / "config.json").read_text())["text_config"]["layer_types"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert missing_modules(names, range(len(kinds)), kinds) == []
    decoder = [name for name in names if name.startswith("model.decoder.")]
    assert len(decoder) > 80
    for name in decoder:
        left = [other for other in names if other != name]
        if ".experts." in name:  # Both tensors are one module's.
            left = [other for other in left if ".experts." not in other]
        missing = missing_modules(left, range(len(kinds)), kinds)
        assert any(name.startswith(one) for one in missing), name
