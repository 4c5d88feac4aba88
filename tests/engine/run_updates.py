# SPDX-License-Identifier: Apache-2.0
"""Changes a served model's weights between requests and during requests, and prints what it then answers.

The argument is the bundled model's family. Standard output is JSON: ids by what was done.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch
from safetensors.torch import load_file, save_file

from vllm import LLM, RequestOutput, SamplingParams
from vllm.v1.diffusion.bundled import bundled_path
from vllm.v1.diffusion.request.params import DiffusionParams

_PROMPTS = ["sort 3142=", "reverse keyboardkeyboard=", "sort 98765=", "add 12+30="]
_END = 1


def _changed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: weight + 0.4 * weight.std() * torch.randn(weight.shape, generator=generator)
        if weight.dim() == 2
        else weight
        for name, weight in weights.items()
    }


def _engine(path: str) -> LLM:
    return LLM(path, max_model_len=256, dtype="float32", enforce_eager=True)


def _params(max_tokens: int) -> SamplingParams:
    """In steps of one token each, without end tokens: a damaged model writes little else."""
    how = DiffusionParams(algorithm="low_confidence_static", steps=16)
    return how.sampling_params(temperature=0, max_tokens=max_tokens, logit_bias={_END: -100.0})


def _ids(llm: LLM, prompts: list[str]) -> list[list[int]]:
    params = _params(32)
    return [list(o.outputs[0].token_ids) for o in llm.generate(prompts, params, use_tqdm=False)]


def _update(llm: LLM, weights: dict[str, torch.Tensor]) -> None:
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights.items()})


def main(family: str) -> dict[str, Any]:
    path = bundled_path(family)
    weights = load_file(Path(path) / "model.safetensors")
    changed = _changed(weights)
    # Longer than a block of the KV cache, which the prefix cache holds where the family has one.
    prompts = [_PROMPTS[0] * 13 + prompt for prompt in _PROMPTS]
    said: dict[str, Any] = {}
    llm = _engine(path)
    said["old"] = _ids(llm, prompts)
    _update(llm, changed)
    llm.reset_prefix_cache()
    said["updated"] = _ids(llm, prompts)
    _update(llm, weights)
    llm.reset_prefix_cache()
    said["back"] = _ids(llm, prompts)
    engine = llm.llm_engine
    for prompt in prompts:
        engine.add_request(prompt, prompt, _params(64))
    for _ in range(5):
        assert not any(output.finished for output in engine.step())
    _update(llm, changed)
    assert engine.reset_prefix_cache(reset_running_requests=True)
    last: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        last |= {o.request_id: o for o in engine.step() if isinstance(o, RequestOutput)}
    said["lengths of those that ran"] = [len(last[prompt].outputs[0].token_ids) for prompt in prompts]
    said["updated while others ran"] = _ids(llm, prompts)
    del engine, llm
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(path, folder, dirs_exist_ok=True)
        save_file(changed, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        said["fresh"] = _ids(_engine(folder), prompts)
    return said


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
