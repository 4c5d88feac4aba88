# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""The registry of generation loops, and that the default one changes nothing."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn

from vllm.v1.generation_loop import (
    GenerationLoop,
    configure_generation_loop,
    get_generation_loop,
    known_generation_loops,
    registry,
)
from vllm.v1.generation_loop.errors import GenerationLoopError
from vllm.v1.worker.gpu.model_states import resolve_model_state_cls
from vllm.v1.worker.gpu.model_states.default import DefaultModelState


SCHEDULER = "vllm.v1.core.sched.async_scheduler.AsyncScheduler"


class Counting(GenerationLoop):
    """Counts what it is asked, and says what a loop can say."""

    def __init__(self):
        self.configured = 0

    def configure(self, vllm_config):
        self.configured += 1

    def scheduler_cls(self, vllm_config):
        return SCHEDULER

    def model_state_cls(self, model):
        return DefaultModelState


class FromTomorrow(GenerationLoop):
    api_version = 99


def config(name=None, scheduler_cls=None):
    return SimpleNamespace(
        generation_loop=name,
        model_config=SimpleNamespace(architectures=["LlamaForCausalLM"]),
        scheduler_config=SimpleNamespace(scheduler_cls=scheduler_cls),
    )


@pytest.fixture(autouse=True)
def fresh():
    registry._make.cache_clear()


def dotted(cls):
    return f"{cls.__module__}.{cls.__qualname__}"


def test_the_default_leaves_every_choice_to_the_engine():
    made = config()
    configure_generation_loop(made)
    assert made.generation_loop == "autoregressive"
    assert made.scheduler_config.scheduler_cls is None
    loop = get_generation_loop(made)
    assert type(loop) is GenerationLoop
    assert loop.model_state_cls(nn.Identity()) is None


@pytest.mark.parametrize("queue", [None, object()])
def test_the_default_steps_as_the_engine_did(queue):
    core = SimpleNamespace(
        batch_queue=queue,
        step=lambda: ("step", True),
        step_with_batch_queue=lambda: ("queue", True),
    )
    assert GenerationLoop().step(core) == ("queue" if queue else "step", True)


def test_the_default_calls_the_model():
    assert GenerationLoop().forward(lambda a, b: (a, b), {"a": 1, "b": 2}) == (1, 2)


def test_a_loop_by_dotted_path_decides(monkeypatch):
    made = config(dotted(Counting))
    monkeypatch.setattr(registry, "_load", lambda name: Counting)
    configure_generation_loop(made)
    assert get_generation_loop(made).loop.configured == 1
    assert made.scheduler_config.scheduler_cls == SCHEDULER
    assert resolve_model_state_cls(made, nn.Identity()) is DefaultModelState


def test_the_users_scheduler_is_kept(monkeypatch):
    made = config("counting", scheduler_cls="mine.Scheduler")
    monkeypatch.setattr(registry, "_load", lambda name: Counting)
    configure_generation_loop(made)
    assert made.scheduler_config.scheduler_cls == "mine.Scheduler"


def test_an_entry_point_is_found(monkeypatch):
    entry = SimpleNamespace(name="counting", load=lambda: Counting)
    monkeypatch.setattr(registry, "_entry_points", lambda: [entry])
    assert known_generation_loops() == ["autoregressive", "counting"]
    assert type(get_generation_loop(config("counting")).loop) is Counting


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch", "Known: autoregressive"),
        ("no.such.Loop", "cannot be imported"),
        ("collections.OrderedDict", "version None"),
    ],
)
def test_a_wrong_name_is_refused(name, words):
    with pytest.raises(ValueError, match=words):
        get_generation_loop(config(name))


def test_a_loop_for_another_interface_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "_load", lambda name: FromTomorrow)
    with pytest.raises(ValueError, match="version 99 of the interface"):
        get_generation_loop(config("tomorrow"))


class Failing(GenerationLoop):
    def validate_params(self, params, vllm_config):
        raise KeyError("a table")

    def forward(self, model, inputs):
        raise KeyError("a layer")


def test_what_a_loop_raises_names_it(monkeypatch):
    monkeypatch.setattr(registry, "_load", lambda name: Failing)
    loop = get_generation_loop(config("failing"))
    with pytest.raises(ValueError, match=r"'failing': validate_params\(\) raised Key"):
        loop.validate_params(None, None)
    with pytest.raises(GenerationLoopError, match=r"forward\(\) raised KeyError"):
        loop.forward(nn.Identity(), {"positions": torch.zeros(1)})
