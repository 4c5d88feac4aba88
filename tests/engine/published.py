# SPDX-License-Identifier: Apache-2.0
"""One small checkpoint of every family, its reference, and adapters for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.engine import checkpoints
from tests.engine.layouts import LLADA_MOE_QUIRKS
from tests.reference.bidirectional import A2dReference, DreamReference, LladaMoeReference, LladaReference
from tests.reference.fast_dllm_v2 import FastDllmV2Reference
from tests.reference.llada22 import Llada22Reference
from tests.reference.moe import Llada2Reference, SdarMoeReference
from tests.reference.nemotron import NemotronReference
from tests.reference.sdar import SdarReference, StableDiffcoderReference

GOLDEN = Path(__file__).parent.parent / "golden"
RANK, ALPHA = 4, 8


@dataclass(frozen=True)
class Published:
    """A family's checkpoint.

    Attributes:
        write: Writes it to a folder; returns where it is.
        reference: Loads it, its weights by published names.
        adapted: What the published names of adapted layers end with.
        prefix: What the reference leaves out of the published names.
        experts: Whether it has experts, which are not adapted.
    """

    write: Callable[[Path], Path]
    reference: Callable[[Path], Any]
    adapted: tuple[str, ...] = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
    prefix: str = ""
    experts: bool = False

    def merged(self, folder: Path, adapter: dict[str, torch.Tensor]) -> Any:
        """The reference, its weights adapted.

        Args:
            folder: The checkpoint.
            adapter: What to add to weights, by their published names.
        """
        reference = self.reference(folder)
        for name, delta in adapter.items():
            own = name.removeprefix(self.prefix)
            reference.weights[own] = reference.weights[own] + delta
        return reference

    def logits(self, folder: Path, ids: list[int], adapter: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits ``[len(ids), vocab]``, every position seeing every other; see :meth:`merged`."""
        reference = self.merged(folder, adapter)
        logits: torch.Tensor
        if hasattr(reference, "forward"):
            logits = reference.forward(ids, range(len(ids)), [])
        elif hasattr(reference, "logits"):
            logits = reference.logits(ids, len(ids))
        else:
            logits = reference._logits(ids, len(ids))
        return logits

    def adapter(self, folder: Path, target: Path, seed: int) -> dict[str, torch.Tensor]:
        """Writes an adapter as PEFT does; returns what it adds, by published names.

        Args:
            folder: The checkpoint.
            target: Where to write it.
            seed: Of its weights.
        """
        generator = torch.Generator().manual_seed(seed)
        tensors, deltas = {}, {}
        for own, weight in sorted(self.reference(folder).weights.items()):
            module = own.removesuffix(".weight")
            if weight.dim() != 2 or ".experts." in own or not module.endswith(self.adapted):
                continue
            rows, columns = weight.shape
            a = torch.randn(RANK, columns, generator=generator) / columns**0.5
            b = torch.randn(rows, RANK, generator=generator) * (weight.std() * columns**0.5 / 8)
            tensors[f"base_model.model.{self.prefix}{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{self.prefix}{module}.lora_B.weight"] = b
            deltas[self.prefix + own] = b @ a * (ALPHA / RANK)
        assert {n.removesuffix(".weight").rsplit(".", 1)[-1] for n in deltas} == set(self.adapted)
        target.mkdir(parents=True)
        save_file(tensors, target / "adapter_model.safetensors", {"format": "pt"})
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(self.adapted)}
        (target / "adapter_config.json").write_text(json.dumps(config))
        return deltas


PUBLISHED = {
    "LLaDA": Published(
        write=lambda _: GOLDEN / "llada",
        reference=LladaReference,
        adapted=("q_proj", "v_proj", "attn_out", "ff_proj", "ff_out"),  # ff_out is the head too.
        prefix="model.transformer.",
    ),
    "Dream": Published(write=lambda _: GOLDEN / "dream", reference=DreamReference),
    "SDAR": Published(
        write=lambda _: GOLDEN / "sdar",
        reference=SdarReference,
        adapted=("k_proj", "o_proj", "up_proj", "down_proj", "lm_head"),
    ),
    "A2D-Qwen3": Published(write=lambda _: GOLDEN / "a2d-qwen3", reference=A2dReference),
    "A2D-Qwen2": Published(write=checkpoints.a2d_qwen2, reference=A2dReference),
    "A2D-Llama": Published(write=lambda _: GOLDEN / "a2d-llama", reference=A2dReference),
    "WeDLM": Published(write=lambda _: GOLDEN / "wedlm", reference=A2dReference),
    "WeDLM-Qwen2": Published(write=checkpoints.wedlm_qwen2, reference=A2dReference),
    "DreamOn": Published(write=lambda _: GOLDEN / "dreamon", reference=DreamReference),
    "Open-dLLM": Published(write=lambda _: GOLDEN / "open-dllm", reference=DreamReference),
    "Stable-DiffCoder": Published(
        write=lambda _: GOLDEN / "stable-diffcoder", reference=StableDiffcoderReference
    ),
    "Fast-dLLM v2": Published(write=checkpoints.fast_dllm_v2, reference=FastDllmV2Reference),
    "SDAR-MoE": Published(
        write=checkpoints.sdar_moe,
        reference=SdarMoeReference,
        adapted=("q_proj", "k_proj", "o_proj", "lm_head"),
        experts=True,
    ),
    "LLaDA2": Published(
        write=lambda _: GOLDEN / "llada2",
        reference=Llada2Reference,
        adapted=("query_key_value", "dense", "down_proj"),
        experts=True,
    ),
    "LLaDA2.2": Published(
        write=lambda _: GOLDEN / "llada22",
        reference=Llada22Reference,
        adapted=("query_key_value", "dense", "down_proj"),
        experts=True,
    ),
    "Nemotron-Labs-Diffusion": Published(
        write=lambda _: GOLDEN / "nemotron_labs_diffusion", reference=NemotronReference
    ),
    "LLaDA-MoE": Published(
        write=lambda folder: checkpoints.llada_moe(folder, LLADA_MOE_QUIRKS),
        reference=LladaMoeReference,
        adapted=("q_proj", "o_proj", "up_proj"),
        experts=True,
    ),
}
"""By the family's name in ``vllm/v1/diffusion/families.py``."""
