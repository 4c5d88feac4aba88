# SPDX-License-Identifier: Apache-2.0
"""Every family in bfloat16: how far its logits are from the float32 reference's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm
from tests.engine import checkpoints
from tests.engine.cases import random_prompt
from tests.engine.conftest import GOLDEN, IN_PROCESS
from tests.engine.layouts import LLADA_MOE_QUIRKS
from tests.reference.bidirectional import (
    BidirectionalReference,
    DreamReference,
    LladaMoeReference,
    LladaReference,
)
from tests.reference.fast_dllm_v2 import FastDllmV2Reference
from tests.reference.llada22 import Llada22Reference
from tests.reference.moe import Llada2Reference, SdarMoeReference
from tests.reference.nemotron import NemotronReference
from tests.reference.sdar import SdarReference
from vllm.v1.diffusion.families import FAMILIES

TOLERANCES = {
    "SDAR": 0.06,
    "SDAR-MoE": 0.02,
    "LLaDA2": 0.1,
    "LLaDA2.2": 0.1,
    "Nemotron-Labs-Diffusion": 0.02,
    "Fast-dLLM v2": 0.02,
    "LLaDA": 0.06,
    "LLaDA-MoE": 0.02,
    "Dream": 0.06,
}
"""The mean difference of a logit, as a share of the logits' standard deviation.

A network that computes something else is off by about 1. The golden checkpoints lose more than
those that the tests make; the table of ``docs/families.md`` has what was measured.
"""
SAME_NETWORK = {
    "A2D-Qwen3": "SDAR",
    "A2D-Qwen2": "Dream",
    "A2D-Llama": "LLaDA",
    "Open-dLLM": "Dream",
    "DreamOn": "Dream",
    "WeDLM": "SDAR",
    "WeDLM-Qwen2": "Dream",
    "Stable-DiffCoder": "LLaDA",
}
"""Families whose layers are those of another: what bfloat16 does to them was measured there."""
PROMPT, BLOCK = 33, 16
CONFIG = {"algorithm": "low_confidence_static", "steps": 1, "block_length": BLOCK}


@dataclass(frozen=True)
class Family:
    """How a family's first step is run and read."""

    folder: Callable[[Path], Path]
    reference: Callable[[Path], Any]
    max_tokens: int
    extra: dict[str, Any] = field(default_factory=dict)
    """A request's parameters."""


def golden(name: str) -> Callable[[Path], Path]:
    return lambda _: GOLDEN / name


def aligned(folder: Callable[[Path], Path], reference: Callable[[Path], Any]) -> Family:
    """Blocks begin at multiples of their length: what the prompt leaves of one."""
    return Family(folder, reference, BLOCK - PROMPT % BLOCK)


def pooled(folder: Path) -> Path:
    """LLaDA2.2's network, whose blocks of 16 share experts, without the ids that edit."""
    shutil.copytree(GOLDEN / "llada22", folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"block_size": BLOCK, "delete_token_id": None, "split_token_id": None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


WAYS = {
    "SDAR": aligned(golden("sdar"), SdarReference),
    "SDAR-MoE": aligned(checkpoints.sdar_moe, SdarMoeReference),
    "LLaDA2": aligned(golden("llada2"), Llada2Reference),
    "LLaDA2.2": aligned(pooled, Llada22Reference),
    "Nemotron-Labs-Diffusion": Family(
        golden("nemotron_labs_diffusion"), NemotronReference, BLOCK, {"diffusion_causal_context": False}
    ),
    "Fast-dLLM v2": aligned(checkpoints.fast_dllm_v2, FastDllmV2Reference),
    "LLaDA": Family(golden("llada"), LladaReference, BLOCK),
    "LLaDA-MoE": Family(lambda f: checkpoints.llada_moe(f, LLADA_MOE_QUIRKS), LladaMoeReference, BLOCK),
    "Dream": Family(golden("dream"), DreamReference, BLOCK),
}
PROMPTS = [list(random_prompt(PROMPT, 300 + i)) for i in range(4)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: way.folder(tmp_path_factory.mktemp("bfloat16")) for name, way in WAYS.items()}


@pytest.fixture(scope="module")
def found(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Log probabilities of each family's first step, ``[prompts, positions, vocab]``."""
    tasks = {
        name: {
            "folder": str(folders[name]),
            "prompts": PROMPTS,
            "max_tokens": way.max_tokens,
            "config": CONFIG,
            "extra": way.extra,
        }
        for name, way in WAYS.items()
    }
    file = tmp_path_factory.mktemp("found") / "logprobs.pt"
    done = warm.run(
        "tests.engine.bfloat16", [str(file)], input=json.dumps(tasks), env={**os.environ, **IN_PROCESS}
    )
    assert done.returncode == 0, done.stderr[-6000:]
    tensors: dict[str, torch.Tensor] = torch.load(file)
    return tensors


def first_step(reference: Any, prompt: list[int], length: int) -> torch.Tensor:
    """The reference's logits ``[length, vocab]`` of the positions that are masked."""
    ids = prompt + [reference.mask_id] * length
    if isinstance(reference, BidirectionalReference):
        logits, shift = reference.forward(ids, range(len(ids)), []), int(reference.shifted)
    elif isinstance(reference, FastDllmV2Reference):
        logits, shift = reference._logits(ids, BLOCK), 1
    elif isinstance(reference, NemotronReference):
        # The prompt sees itself, the block everything.
        sees = torch.ones(len(ids), len(ids), dtype=torch.bool)
        sees[: len(prompt), len(prompt) :] = False
        logits, shift = reference.under(ids, sees), 0
    else:
        logits, shift = reference.logits(ids, BLOCK), 0
    return logits[len(prompt) - shift :][:length]


MASKED = [family for family in FAMILIES if family.mask_token_id is not None]
"""The others have a golden test of their own."""


@pytest.mark.parametrize("family", MASKED, ids=lambda f: f.name)
def test_logits(family: Any, folders: dict[str, Path], found: dict[str, torch.Tensor]) -> None:
    name = SAME_NETWORK.get(family.name, family.name)
    reference, way = WAYS[name].reference(folders[name]), WAYS[name]
    want = torch.stack([first_step(reference, prompt, way.max_tokens) for prompt in PROMPTS])
    ids = [i for i in range(want.shape[-1]) if i != reference.mask_id]
    apart = (found[name] - want.log_softmax(-1))[..., ids].abs().mean() / want.std()
    print(f"{name}: {apart:.4f}")
    # Not float32: what was asked for is what ran.
    assert 1e-4 < apart < TOLERANCES[name]
