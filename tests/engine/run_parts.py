# SPDX-License-Identifier: Apache-2.0
"""One of the processes that a model is spread over; see ``test_parts.py``.

The models alone, without engine, cache and batches: attention is computed from a
step's own queries, keys and values. An engine a family would take ten times as long.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


def build(settings: dict[str, Any]) -> tuple[Any, Any]:
    """The configuration and this process's part of the model, its weights loaded."""
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.model_loader import get_model

    config = EngineArgs(**settings).create_engine_config()
    with set_current_vllm_config(config):
        model = get_model(vllm_config=config)
    for module in model.modules():
        if isinstance(module, Attention):
            module.forward = attend(module)  # type: ignore[method-assign]
    return config, model


def attend(layer: Any) -> Any:
    """Attention of every position to every other."""

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.view(len(x), -1, layer.head_size).transpose(0, 1) for x in (q, k, v))
        mixed = scaled_dot_product_attention(q, k, v, scale=layer.impl.scale, enable_gqa=True)
        return mixed.transpose(0, 1).flatten(1)

    return forward


def logits(config: Any, model: Any, ids: list[int]) -> torch.Tensor | None:
    """Logits ``[len(ids), vocab]``; None where this process is not the last stage."""
    from vllm.distributed import get_pp_group
    from vllm.forward_context import set_forward_context
    from vllm.sequence import IntermediateTensors

    stage, received = get_pp_group(), None
    if not stage.is_first_rank:
        received = IntermediateTensors(stage.recv_tensor_dict() or {})
    with set_forward_context(None, config, num_tokens=len(ids)), torch.inference_mode():
        tokens = torch.tensor(ids)
        hidden = model(tokens, torch.arange(len(ids)), received)
        if not stage.is_last_rank:
            stage.send_tensor_dict(hidden.tensors)
            return None
        found: torch.Tensor | None = model.compute_logits(hidden)
        return found


def adapt(config: Any, model: Any, ids: list[int], folder: str) -> Any:
    """Puts an adapter on the model, for all tokens."""
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.request import LoRARequest
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    manager = LRUCacheWorkerLoRAManager(config, torch.device("cpu"), model.embedding_modules)
    model = manager.create_lora_manager(model, config)
    rows = (1,) * len(ids)
    manager.set_active_adapters({LoRARequest("own", 1, folder)}, LoRAMapping(rows, rows, is_prefill=True))
    return model


def shared(config: Any, model: Any, ids: list[int]) -> dict[str, torch.Tensor]:
    """Statistics of whole rows, those of the ranks' shares put together, and whole rows of the shares."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor
    from vllm.v1.diffusion.kernels.merge_row_stats import merge_row_stats, share_numbers
    from vllm.v1.diffusion.kernels.row_stats import row_stats
    from vllm.v1.diffusion.layers.vocabulary_shares import share_vocabulary

    whole = logits(config, model, ids)
    assert whole is not None
    shares = share_vocabulary(model)
    assert shares is not None
    share = logits(config, model, ids)
    assert share is not None
    zeros = torch.zeros(len(ids))
    given = zeros, zeros + 1, zeros.long(), zeros.long()
    found = {"whole": whole, "gathered": shares.whole(share), "share": torch.tensor(share.shape[1])}
    for banned in (-1, int(whole[0].argmax()), int(whole[1].argmax())):
        own = row_stats(shares.own(share), *given, None, shares.own_id(banned))
        numbers = share_numbers(shares.own(share), own, shares.first)
        merged = merge_row_stats(shares.of_all(numbers), None, banned)
        alone = row_stats(whole.contiguous(), *given, None, banned)
        found[f"merged {banned}"] = torch.stack([x.double() for x in merged])
        found[f"alone {banned}"] = torch.stack([x.double() for x in alone])
    (processor,) = (m for m in model.modules() if isinstance(m, LogitsProcessor))
    processor.__class__ = LogitsProcessor
    return found


def main() -> None:
    """Reads a task, runs this process's part of it, saves what it found."""
    task = json.load(sys.stdin)
    rank, world = task["rank"], task["world"]
    torch.set_num_threads(1)
    torch.accelerator.empty_cache = lambda: None  # The loader frees a device's memory.
    os.environ["VLLM_DIST_IDENT"] = task["init"].rsplit("-", 1)[-1]
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state

    groups: Any = parallel_state

    found: dict[str, Any] = {}
    with set_current_vllm_config(VllmConfig()):
        groups.init_distributed_environment(world, rank, task["init"], rank, "gloo")
    for sizes, runs in task["groups"]:
        with set_current_vllm_config(VllmConfig()):
            groups.initialize_model_parallel(*sizes)
        for run in runs:
            config, model = build(run["settings"])
            with set_current_vllm_config(config):
                found[run["name"]] = logits(config, model, run["ids"])
                if run["settings"].get("tensor_parallel_size", 1) > 1:
                    found[run["name"] + ", shared"] = shared(config, model, run["ids"])
                if run.get("adapter"):
                    model = adapt(config, model, run["ids"], run["adapter"])
                    found[run["name"] + ", adapted"] = logits(config, model, run["ids"])
        groups.destroy_model_parallel()
    if rank == world - 1:
        torch.save(found, Path(task["output"]))
    groups.destroy_distributed_environment()


if __name__ == "__main__":
    main()
