# SPDX-License-Identifier: Apache-2.0
"""Adapters are loaded before a step needs them: one that cannot be loaded ends its own requests only.

Upstream loads an adapter inside the step that first needs it, where an error ends the engine. The part that
is loaded by then stays, and disturbs the next adapter.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger
from vllm.lora.peft_helper import PEFTHelper
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import RequestStatus

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.core import EngineCore

logger = init_logger(__name__)


def check_adapter(lora_request: LoRARequest | None, vllm_config: VllmConfig) -> None:
    """Refuses an adapter of a kind that cannot be served, by its configuration.

    Args:
        lora_request: A request's adapter; None for none.
        vllm_config: The engine's configuration.

    Raises:
        ValueError: Names the adapter and what is not supported.
    """
    lora_config = vllm_config.lora_config
    if lora_request is None or lora_config is None:
        return
    file = Path(lora_request.lora_path) / "adapter_config.json"
    if not file.is_file():
        return  # A name to be downloaded, or none: the engine core says so.
    why = _refusal(file, file.stat().st_mtime_ns, lora_config.max_lora_rank)
    if why is not None:
        raise ValueError(f"lora_request={lora_request.lora_name!r} cannot be served: {why}")


@lru_cache(maxsize=256)
def _refusal(file: Path, changed: int, max_rank: int) -> str | None:
    """Why a configuration cannot be served; the file is read again when it has changed."""
    try:
        kind = json.loads(file.read_text()).get("peft_type", "LORA")
        if kind != "LORA":
            return f"peft_type={kind!r} is not supported, but 'LORA'."
        limits: Any = SimpleNamespace(max_lora_rank=max_rank)  # All that is read of it.
        PEFTHelper.from_local_dir(str(file.parent), None).validate_legal(limits)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        return str(error)
    return None


class AdapterLoading:
    """Loads the adapters of waiting requests, in the engine core."""

    def __init__(self) -> None:
        """Makes it; nothing is loaded."""
        self._loaded: dict[int, tuple[str, bool]] = {}

    def fail_unloadable(self, core: EngineCore) -> dict[int, EngineCoreOutputs]:
        """Ends the waiting requests whose adapter cannot be loaded.

        Args:
            core: The engine core.

        Returns:
            Outputs by client index; none where every adapter is loaded.
        """
        if core.vllm_config.lora_config is None:
            return {}
        scheduler: Any = core.scheduler
        wanted: defaultdict[int, list[Any]] = defaultdict(list)
        for request in getattr(scheduler, "waiting", ()):
            adapter = request.lora_request
            if adapter is None or self._loaded.get(adapter.lora_int_id) == _key(adapter):
                continue
            wanted[adapter.lora_int_id].append(request)
        outputs: defaultdict[int, list[EngineCoreOutput]] = defaultdict(list)
        for number, requests in wanted.items():
            adapter = requests[0].lora_request
            why = _load(core, adapter)
            if why is None:
                self._loaded[number] = _key(adapter)
                continue
            message = f"lora_request={adapter.lora_name!r} cannot be served: {why}"
            logger.error("%s", message)
            for request in requests:
                scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ERROR)
                reason = f"{message} (request {request.request_id})"
                outputs[request.client_index].append(
                    EngineCoreOutput(
                        request.request_id, [], finish_reason=FinishReason.ERROR, stop_reason=reason
                    )
                )
        return {
            client: EngineCoreOutputs(outputs=some, finished_requests={one.request_id for one in some})
            for client, some in outputs.items()
        }


def _key(adapter: LoRARequest) -> tuple[str, bool]:
    return adapter.lora_path, adapter.load_inplace


def misfits(worker: Any, number: int) -> list[str]:
    """Modules whose weights upstream would copy into a part of their place.

    *Process:* worker.

    Args:
        worker: The worker.
        number: The adapter's number.
    """
    manager = worker.model_runner.lora_manager._adapter_manager
    found = []
    for name, weights in manager.get_adapter(number).loras.items():
        base: Any = getattr(manager.modules.get(name), "base_layer", None)
        size, sizes = getattr(base, "input_size", None), getattr(base, "output_sizes", None)
        if size is None:
            continue  # An embedding or a head: they are as large as the vocabulary says.
        ups, downs = _several(weights.lora_b), _several(weights.lora_a)
        wanted = sizes if sizes is not None and len(ups) == len(sizes) else [base.output_size] * len(ups)
        if getattr(base, "tp_size", 1) > 1:
            ups = []  # Where ranks share key heads, a layer's sizes count them several times.
            wanted = []
        if any(down is not None and down.shape[-1] != size for down in downs) or any(
            up is not None and up.shape[0] != one for up, one in zip(ups, wanted, strict=True)
        ):
            found.append(name)
    return found


def _several(weights: Any) -> list[Any]:
    return list(weights) if isinstance(weights, list | tuple) else [weights]


def _load(core: EngineCore, adapter: LoRARequest) -> str | None:
    """Has the workers load an adapter; why they could not, with nothing of it left."""
    try:
        core.model_executor.add_lora(adapter)
        found = core.model_executor.collective_rpc(misfits, args=(adapter.lora_int_id,))
        if names := sorted({name for some in found for name in some}):
            raise ValueError(f"its weights are of another size than the model's: {', '.join(names[:4])}")
    except Exception as error:
        if getattr(core.model_executor, "is_failed", False):
            raise
        try:
            core.model_executor.remove_lora(adapter.lora_int_id)
        except Exception:
            logger.exception("Adapter %s is not removed.", adapter.lora_name)
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None
