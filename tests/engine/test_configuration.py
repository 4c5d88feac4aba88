# SPDX-License-Identifier: Apache-2.0
"""What the loops choose where the user has not; no engine is started."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from tests.engine.admission import configured
from vllm import envs


@pytest.mark.parametrize(("block", "wanted"), [(4, 128), (32, 128), (24, 96), (60, 480)])
def test_a_block_of_the_cache_holds_whole_blocks(block: int, wanted: int) -> None:
    """Else cached prefixes would end inside one; upstream must not choose again."""
    from vllm.platforms import current_platform

    config = configured(diffusion_config={"block_length": block})
    current_platform.update_block_size_for_backend(config)
    assert config.cache_config.block_size == wanted


def test_a_gpu_s_block_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's is 16 there, also after the attention backend was chosen."""
    from vllm.platforms import current_platform
    from vllm.platforms.interface import Platform
    from vllm.v1.diffusion.loops.engine_settings import fit_cache_blocks

    config = configured(diffusion_config={"block_length": 32})
    cache_config = config.cache_config
    cache_config.block_size, cache_config.user_specified_block_size = 16, False
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: False)
    fit_cache_blocks(config, 32)
    monkeypatch.undo()
    Platform.update_block_size_for_backend(config)
    assert cache_config.block_size == 32


def test_the_user_s_block_of_the_cache_stays() -> None:
    assert configured(diffusion_config={"block_length": 24}, block_size=64).cache_config.block_size == 64


@pytest.mark.parametrize(
    ("model", "block", "length", "warms_up"),
    [
        ("sdar", 16, 960, True),
        ("sdar", 32, 160, False),  # its longest request is one of 193 tokens
        ("llada", 64, 512, True),
        ("llada", 128, 512, False),
        ("dream", None, 960, False),  # a block is a whole response
        ("llada22", None, 960, False),  # its requests have bad words, which insertions do not go with
        ("dreamon", None, 960, False),  # and log probabilities
        ("wedlm", 32, 960, True),
        ("nemotron_labs_diffusion", 32, 960, True),
    ],
)
def test_upstream_s_warm_up_is_for_models_that_can_answer_it(
    model: str, block: int | None, length: int, warms_up: bool
) -> None:
    diffusion = {"block_length": block} if block else None
    config = configured(model, max_model_len=length, diffusion_config=diffusion)
    assert config.kernel_config.enable_jit_warmup is warms_up


@pytest.mark.parametrize("model", ["sdar", "llada", "a2d-qwen3", "stable-diffcoder"])
def test_the_estimator_of_likelihoods(model: str) -> None:
    assert configured(model).diffusion_config.likelihood == "left_to_right"
    given = configured(model, diffusion_config={"likelihood": "one_step"})
    assert given.diffusion_config.likelihood == "one_step"


@pytest.mark.parametrize("model", ["llada22", "dreamon", "nemotron_labs_diffusion", "wedlm"])
def test_a_family_without_likelihoods_has_no_estimator(model: str) -> None:
    assert configured(model).diffusion_config.likelihood is None
    with pytest.raises(ValueError, match="diffusion_config: likelihood='one_step' has no effect on"):
        configured(model, diffusion_config={"likelihood": "one_step"})


@pytest.mark.parametrize(
    ("command", "given", "shares"),
    [
        ("serve", {}, True),
        ("serve", {"distributed_executor_backend": "mp"}, False),
        ("serve", {"tensor_parallel_size": 2}, False),
        ("serve", {"async_scheduling": True}, False),
        ("bench", {}, False),
    ],
)
def test_a_server_s_rank_on_a_cpu(
    command: str, given: dict[str, Any], shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It computes in the engine core's process, on the cores that a process of its own would have."""
    from vllm.platforms import current_platform
    from vllm.utils.ompmultiprocessing import OMPProcessManager
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    if not current_platform.is_cpu():
        pytest.skip("of a CPU")
    envs.disable_envs_cache()
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv(
        "VLLM_CPU_OMP_THREADS_BIND", "0" if given.get("tensor_parallel_size") is None else "0|1"
    )
    for name in ("OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND"):
        monkeypatch.delenv(name, raising=False)  # Engines of other tests set them.
    monkeypatch.setattr(sys, "argv", ["vllm", command])
    monkeypatch.setitem(sys.modules, "vllm.entrypoints.cli.serve", ModuleType("serve"))
    with mock.patch.dict(os.environ):
        config = configured(**given)
        bound = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND")}
    assert issubclass(Executor.get_class(config), UniProcExecutor) is shares
    with mock.patch.dict(os.environ), OMPProcessManager(config).configure_omp_envs(0, 0):
        assert ({name: os.environ.get(name) for name in bound} == bound) is shares
