# SPDX-License-Identifier: Apache-2.0
"""What policies remember and compute has a bound, which the engine keeps free."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
import torch

from tests.engine.conftest import GOLDEN
from tests.sampling.options import PROMPT, params
from tests.sampling.peak import Peak
from tests.sampling.rig import Request, Rig, numbers_of
from vllm.v1.diffusion.policies import CanvasView, PositionStats
from vllm.v1.diffusion.policies.adaptive import credit
from vllm.v1.diffusion.policies.memory import (
    MOST_MEMORY,
    MOST_TEMPORARY,
    check_memory,
    memory_needed,
    size_of,
)
from vllm.v1.diffusion.policies.registry import built_in_policies, get_policy
from vllm.v1.diffusion.sampling import policy_selection
from vllm.v1.worker.cpu import runner_kernels


@pytest.fixture(autouse=True)
def registered() -> None:
    runner_kernels.register()


def stats_and_view(requests: int, width: int) -> tuple[PositionStats, CanvasView]:
    """A step of requests that use ``credit``, in the middle of their blocks."""
    torch.manual_seed(0)
    shape = (requests, width)
    memory = get_policy("credit").make_memory(requests, width, torch.device("cpu"))
    memory["leader"].random_(0, 3)
    memory["credit"].uniform_(0, 1)
    numbers = torch.rand(shape)
    token = torch.randint(0, 3, shape)
    zeros = torch.zeros(requests, dtype=torch.int32)
    view = CanvasView(
        tokens=token,
        masked=torch.ones(shape, dtype=torch.bool),
        step=zeros + 7,
        steps=zeros + width,
        block_length=zeros + width,
        unmasked=torch.zeros(shape, dtype=torch.bool),
        seed=zeros.long(),
        position=token,
        memory=memory,
    )
    return PositionStats(token, numbers, numbers, numbers, numbers), view


def test_credit_in_parts_is_credit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = get_policy("credit")
    whole = astuple(policy.boost(*stats_and_view(3, 40)))
    monkeypatch.setattr(credit, "MOST_PAIRS", 7 * 40**2 + 1)
    parts = astuple(policy.boost(*stats_and_view(3, 40)))
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize(("requests", "width"), [(1, 4096), (16, 256), (256, 32)])
def test_what_credit_computes_is_bounded(requests: int, width: int) -> None:
    stats, view = stats_and_view(requests, width)
    with Peak() as peak:
        get_policy("credit").boost(stats, view)
    assert 1000 < peak.most < MOST_TEMPORARY


def test_what_a_policy_remembers_is_known_before_it_is_made() -> None:
    device = torch.device("cpu")
    for name in built_in_policies():
        made = get_policy(name).make_memory(5, 40, device)
        assert memory_needed(name, 5, 40) == size_of(made)
    assert memory_needed("credit", 256, 4096) > MOST_MEMORY


def test_a_policy_that_remembers_too_much_is_refused_by_name() -> None:
    check_memory("credit", 256, 64)
    check_memory("entropy", 256, 4096)
    with pytest.raises(ValueError, match=r"diffusion_algorithm='credit' would remember .* block_length=4096"):
        check_memory("credit", 256, 4096)


def test_a_request_and_an_operator_are_refused() -> None:
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.generation_loop import get_generation_loop

    def configured(algorithm: str | None, max_num_seqs: int) -> Any:
        config = {"block_length": 2048} | ({"algorithm": algorithm} if algorithm else {})
        args = EngineArgs(
            model=str(GOLDEN / "llada"),
            max_model_len=2048,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=4096,
            diffusion_config=config,
            hf_overrides={"max_sequence_length": 2048, "max_position_embeddings": 2048},
        )
        return args.create_engine_config()

    params = SamplingParams(max_tokens=8, extra_args={"diffusion_algorithm": "credit"})
    config = configured(None, 256)
    with pytest.raises(ValueError, match="diffusion_algorithm='credit' would remember"):
        get_generation_loop(config).validate_params(params.clone(), config)
    with pytest.raises(ValueError, match="diffusion_algorithm='credit' would remember"):
        configured("credit", 256)
    config = configured("credit", 64)
    get_generation_loop(config).validate_params(params.clone(), config)


def test_policies_of_all_packages_share_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(num_slots=6)
    edit = Request(params(), PROMPT, algorithm="edit", values=numbers_of("edit"))
    failing = Request(params(), PROMPT, algorithm="confidence_threshold")
    monkeypatch.setattr(policy_selection, "MOST_MEMORY", 6 * 4)
    rig.add(edit)
    name = rig.add(failing)
    rig.add(Request(params(), PROMPT))
    why = "make_memory() raised ValueError: make_memory(6, 8, ...) took 48 bytes, with 24 taken by"
    (failed,) = rig.step().policy_failures.items()
    assert failed[0] == name and failed[1].startswith(why)
    rig.remove("0")  # What was taken by its policy is free again.
    monkeypatch.setattr(policy_selection, "MOST_MEMORY", 6 * 8)
    assert rig.step().policy_failures is None


@pytest.mark.parametrize(("available", "want"), [(2**33, 2**32), (2**20, "one"), (2**60, "all")])
def test_the_cache_of_a_cpu_is_bounded(
    available: int, want: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what can be used, by half of what is free, and by what one request takes: so a model starts."""
    from types import SimpleNamespace

    import psutil

    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.diffusion.loops import engine_settings

    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    config = EngineArgs(
        model=str(GOLDEN / "dream"), dtype="float32", max_model_len=2**17, max_num_seqs=256
    ).create_engine_config()
    model, parallel = config.model_config, config.parallel_config
    per_token = (
        2 * model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size() * 4
    )
    one = per_token * (2**17 + engine_settings._CACHE_SLACK)
    sizes: dict[Any, Any] = {"one": one, "all": 256 * one}
    assert config.cache_config.kv_cache_memory_bytes == sizes.get(want, want)
