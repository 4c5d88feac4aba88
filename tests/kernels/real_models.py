# SPDX-License-Identifier: Apache-2.0
"""Upstream's own layers, of tiny checkpoints, in this process and without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tests.engine.published import PUBLISHED
from tests.engine.run_parts import attend

SETTINGS: dict[str, Any] = {"dtype": "bfloat16", "enforce_eager": True, "max_model_len": 256}


@contextmanager
def one_process(folder: Path) -> Iterator[None]:
    """Process groups of this process alone, as layers want them when they are made."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state

    groups: Any = parallel_state
    emptied = torch.accelerator.empty_cache
    torch.accelerator.empty_cache = lambda: None  # The loader frees a device's memory.
    try:
        with set_current_vllm_config(VllmConfig()):
            groups.init_distributed_environment(1, 0, f"file://{folder / 'groups'}", 0, "gloo")
            groups.initialize_model_parallel(1, 1)
        yield
    finally:
        torch.accelerator.empty_cache = emptied
        groups.destroy_model_parallel()
        groups.destroy_distributed_environment()


def build(name: str, folder: Path, **settings: Any) -> tuple[Any, Any]:
    """A family's configuration and model, in which every position sees every other."""
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.model_loader import get_model

    where = PUBLISHED[name].write(folder / name)
    config = EngineArgs(**(SETTINGS | settings), model=str(where)).create_engine_config()
    with set_current_vllm_config(config):
        model = get_model(vllm_config=config)
    for module in model.modules():
        if isinstance(module, Attention):
            module.forward = attend(module)  # type: ignore[method-assign]
    return config, model


def logits(config: Any, model: Any, ids: list[int]) -> torch.Tensor:
    """Logits of a prompt, ``[len(ids), vocab]``."""
    from vllm.config import set_current_vllm_config
    from vllm.forward_context import set_forward_context

    tokens, positions = torch.tensor(ids), torch.arange(len(ids))
    with (
        set_current_vllm_config(config),
        set_forward_context(None, config, num_tokens=len(ids)),
        torch.inference_mode(),
    ):
        found: torch.Tensor = model.compute_logits(model(tokens, positions, None))
        return found
