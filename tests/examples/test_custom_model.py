# SPDX-License-Identifier: Apache-2.0
"""The model class of ``examples/custom_model``, installed, under the built-in loop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from tests.engine.cases import GOLDEN_SDAR, random_prompt
from tests.generation_loop.elsewhere import generate, request
from tests.reference.sdar import SdarReference

CAP, BLOCK, LENGTH, THRESHOLD = 4.0, 16, 40, 0.3


class CappedReference(SdarReference):
    """The plain reference with capped logits."""

    def logits(self, ids: list[int], block_length: int) -> torch.Tensor:
        return CAP * torch.tanh(super().logits(ids, block_length) / CAP)


def test_an_architecture_of_ones_own(installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "capped"
    shutil.copytree(GOLDEN_SDAR, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["CappedForCausalLM"], "logit_cap": CAP}
    (folder / "config.json").write_text(json.dumps(config))
    prompts = [list(random_prompt(n, 94)) for n in (3, 20, 33)]
    keys = {"diffusion_algorithm": "low_confidence_dynamic", "diffusion_threshold": THRESHOLD}
    (results,) = generate(
        [[request(prompt, LENGTH, extra_args=keys) for prompt in prompts]],
        installed=installed,
        model=str(folder),
        diffusion_config={"block_length": BLOCK},
    )
    reference, uncapped = CappedReference(folder), SdarReference(folder)
    how = (LENGTH, BLOCK, BLOCK, "low_confidence_dynamic", THRESHOLD)
    wants = [reference.generate(prompt, *how) for prompt in prompts]
    assert [r["token_ids"] for r in results] == [w.output_ids for w in wants]
    assert any(
        w.unmask_step != uncapped.generate(p, *how).unmask_step for w, p in zip(wants, prompts, strict=True)
    )
