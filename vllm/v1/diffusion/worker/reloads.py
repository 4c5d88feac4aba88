# SPDX-License-Identifier: Apache-2.0
"""Loads weights into a served model; a failed load does not end the worker.

Upstream takes a model's parameters apart before it loads new ones, layer by layer, and puts them back
after the last one. A load that fails in between leaves a model that ends the worker with the next step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vllm.config import ModelConfig
from vllm.distributed import parallel_state
from vllm.logger import init_logger
from vllm.model_executor.model_loader.reload import layerwise
from vllm.v1.generation_loop.errors import GenerationLoopError

logger = init_logger(__name__)

_SOURCE = ("model", "model_weights", "revision")
"""Where a configuration says that weights come from: upstream changes it before it loads."""


class WeightsError(RuntimeError):
    """Weights could not be loaded into a served model."""


class Reloads:
    """Watches loads into a served model, and undoes those that fail.

    Attributes:
        problem: Why the model must not run; None where it may.
    """

    def __init__(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Puts itself in the place of the model's ``load_weights``.

        Args:
            model: The model, loaded.
            model_config: Its configuration.
        """
        self.problem: str | None = None
        self._model = model
        self._config = model_config
        self._source = self._source_now()
        self._open = False
        self._first = next(iter(_layers(model)), None)
        self._load: Any = getattr(model, "load_weights", None)
        if self._load is not None:
            model.load_weights = self._watched  # type: ignore[assignment]

    def check(self) -> None:
        """Called before each step.

        Raises:
            GenerationLoopError: The model's weights are not whole; the step's requests fail with that.
        """
        if self.problem is None and not self._open and not self._taken_apart():
            return
        if self.problem is not None:
            raise GenerationLoopError(self.problem)
        self._open = bool(_open_layers(self._model))
        if self._open:
            raise GenerationLoopError(
                "The model's weights are being updated: requests are refused until the update is finished."
            )

    def _watched(self, weights: Iterable[tuple[str, torch.Tensor]], *args: Any, **kwargs: Any) -> Any:
        untouched = all(layer in set(_open_layers(self._model)) for layer in _layers(self._model))
        failure, cause, loaded = None, None, None
        try:
            loaded = self._load(weights, *args, **kwargs)
        except Exception as error:
            failure, cause = f"{type(error).__name__}: {error}", error
        failure = _agreed(failure)
        if failure is None:
            self.problem, self._source = None, self._source_now()
            self._open = bool(_open_layers(self._model))
            return loaded
        kept = untouched and all(layer in set(_open_layers(self._model)) for layer in _layers(self._model))
        _put_back(self._model)
        for name, value in zip(_SOURCE, self._source, strict=True):
            setattr(self._config, name, value)
        self._open = False
        message = f"Weights could not be loaded ({failure})."
        if _agreed(None if kept else "") is None:
            logger.error("%s The old ones are kept.", message)
            raise WeightsError(f"{message} The old ones are kept.") from cause
        self.problem = (
            f"{message} Some are new and some are old: requests are refused until others are loaded."
        )
        logger.error(self.problem)
        raise WeightsError(self.problem) from cause

    def _taken_apart(self) -> bool:
        parameters = () if self._first is None else self._first._parameters.values()
        return any(parameter is not None and parameter.is_meta for parameter in parameters)

    def _source_now(self) -> tuple[Any, ...]:
        return tuple(getattr(self._config, name, None) for name in _SOURCE)


def _layers(model: nn.Module) -> list[nn.Module]:
    """The layers that have weights of their own."""
    return [layer for layer in model.modules() if any(p is not None for p in layer._parameters.values())]


def _open_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that upstream has taken apart and not put back."""
    infos = layerwise.LAYERWISE_INFO
    return [layer for layer in model.modules() if layer in infos and infos[layer].can_load()]


def _put_back(model: nn.Module) -> None:
    """Restores the parameters of layers that were not loaded."""
    for layer in _open_layers(model):
        info = layerwise.LAYERWISE_INFO[layer]
        if info.kernel_tensors is not None:
            layerwise._place_kernel_tensors(layer, info)
        info.reset()  # type: ignore[no-untyped-call]
    layerwise.LOADING_LAYERS.clear()


def _agreed(failure: str | None) -> str | None:
    """A failure on whichever rank of the engine, all of which must call it."""
    if not parallel_state.model_parallel_is_initialized():  # type: ignore[no-untyped-call]
        return failure
    for group in (parallel_state.get_tp_group(), parallel_state.get_pp_group()):
        if group.world_size == 1:
            continue
        theirs: list[str | None] = [None] * group.world_size
        dist.all_gather_object(theirs, failure, group=group.cpu_group)
        failure = next((f for f in theirs if f is not None), None)
    return failure
