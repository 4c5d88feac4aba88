# SPDX-License-Identifier: Apache-2.0
"""A load of weights into a served model that fails leaves a model that runs, or requests that are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
    record_metadata_for_reloading,
)
from vllm.v1.diffusion.worker.reloads import Reloads, WeightsError
from vllm.v1.generation_loop.errors import GenerationLoopError


class Model(nn.Module):
    """Two layers, loaded by name as upstream's models are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

    def load_weights(self, weights: Any) -> set[str]:
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        loaded = set()
        for name, tensor in weights:
            parameter = dict(self.named_parameters())[name]
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
            loaded.add(name)
        return loaded


@pytest.fixture
def served() -> Iterator[tuple[Model, Reloads, Any]]:
    model = Model().requires_grad_(False)
    record_metadata_for_reloading(model)
    config = SimpleNamespace(model="old", model_weights="", revision="r", dtype=torch.float32)
    yield model, Reloads(model, config), config  # type: ignore[arg-type]


def reload(model: Model, weights: Callable[[], Any], config: Any) -> None:
    """As upstream's runner does."""
    config.model, config.revision = "new", None
    initialize_layerwise_reload(model)
    model.load_weights(weights())
    finalize_layerwise_reload(model, config)  # type: ignore[no-untyped-call]


def whole() -> Any:
    return iter([("first.weight", torch.ones(3, 3)), ("second.weight", torch.full((3, 3), 2.0))])


def test_a_reload_that_succeeds(served: Any) -> None:
    model, reloads, config = served
    reload(model, whole, config)
    reloads.check()
    assert torch.equal(model.second.weight, torch.full((3, 3), 2.0)) and config.model == "new"


def test_the_old_weights_are_kept_where_nothing_was_written(served: Any) -> None:
    model, reloads, config = served
    before = model.first.weight.clone()

    def missing() -> Any:
        raise OSError("no such file")
        yield

    with pytest.raises(WeightsError, match=r"no such file.*The old ones are kept"):
        reload(model, missing, config)
    reloads.check()
    assert torch.equal(model.first.weight, before) and not model.second.weight.is_meta
    assert (config.model, config.revision) == ("old", "r")
    reload(model, whole, config)
    assert torch.equal(model.first.weight, torch.ones(3, 3))


def test_requests_are_refused_where_some_were_written(served: Any) -> None:
    model, reloads, config = served

    def truncated() -> Any:
        yield "first.weight", torch.ones(3, 3)
        raise ValueError("the file ends")

    with pytest.raises(WeightsError, match=r"the file ends.*Some are new and some are old"):
        reload(model, truncated, config)
    assert not any(p.is_meta for p in model.parameters())
    with pytest.raises(GenerationLoopError, match="Weights could not be loaded"):
        reloads.check()
    reload(model, whole, config)
    reloads.check()


def test_requests_are_refused_while_weights_are_updated(served: Any) -> None:
    model, reloads, config = served
    initialize_layerwise_reload(model)
    with pytest.raises(GenerationLoopError, match="being updated"):
        reloads.check()
    weights = whole()
    model.load_weights([next(weights)])
    with pytest.raises(GenerationLoopError, match="being updated"):
        reloads.check()
    model.load_weights(weights)
    finalize_layerwise_reload(model, config)  # type: ignore[no-untyped-call]
    reloads.check()
    assert torch.equal(model.first.weight, torch.ones(3, 3))
