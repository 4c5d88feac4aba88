# SPDX-License-Identifier: Apache-2.0
"""Loads a model again and again, each time without some of its weights; see ``test_complete_weights.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def build(folder: str, rendezvous: str) -> tuple[Any, Any]:
    """The configuration and the model of a folder, without weights."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        init_distributed_environment,
        initialize_model_parallel,
        model_parallel_is_initialized,
    )
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    config = EngineArgs(model=folder, dtype="float32", max_model_len=256).create_engine_config()
    with set_current_vllm_config(config):
        if not model_parallel_is_initialized():  # type: ignore[no-untyped-call]
            init_distributed_environment(1, 0, rendezvous, 0, "gloo")
            initialize_model_parallel(1, 1)
        with set_default_torch_dtype(torch.float32):
            return config, initialize_model(vllm_config=config)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def under_the_head(config: Any, model: Any, head: torch.Tensor) -> str:
    """Loads a tied checkpoint whose only such weight is the head's, as an engine does."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model_loader

    with set_current_vllm_config(config):
        get_model_loader(config.load_config).load_weights(model, config.model_config)
    parts = (model.model.embed_tokens.weight, model.lm_head.weight)
    return "loaded" if all(torch.equal(part[: len(head)], head) for part in parts) else "other weights"


def attempts(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """A checkpoint without one weight of every kind, by what is missing."""
    kinds = set()
    for name in tensors:
        kind = "".join(c for c in name if not c.isdigit())
        if kind not in kinds:
            kinds.add(kind)
            yield name, {n: t for n, t in tensors.items() if n != name}


def main() -> None:
    """Reads tasks ``[name, folder]``; prints what loading said of every attempt."""
    tasks, rendezvous = json.loads(sys.stdin.read())
    found: dict[str, dict[str, str]] = {}
    for name, folder in tasks:
        config, model = build(folder, rendezvous)
        tensors = weights_of(Path(folder))
        if name == "tied":
            found[name] = {"under the head's name": under_the_head(config, model, tensors["lm_head.weight"])}
            continue
        said = found[name] = {}
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(config):
            for missing, left in attempts(tensors):
                try:
                    model.load_weights(iter(left.items()))
                    said[missing] = "loaded"
                    model._complete = False
                except ValueError as error:
                    said[missing] = str(error)
            bias = next(n for n in tensors if n.endswith(("down_proj.weight", "ff_out.weight")))
            extra = {bias.replace("weight", "bias"): torch.zeros(tensors[bias].shape[0])}
            for label, given in (("bias", tensors | extra), ("all", tensors)):
                try:
                    model.load_weights(iter(given.items()))
                    said[label] = "loaded"
                except ValueError as error:
                    said[label] = str(error)
            # Once all is there, a part of it may be loaded again.
            model.load_weights(iter(list(tensors.items())[:1]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
