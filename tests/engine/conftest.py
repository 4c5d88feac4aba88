# SPDX-License-Identifier: Apache-2.0
"""Engines that the tests share: a start costs many seconds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm
from tests.engine.cases import Case
from tests.engine.golden import cases_of

# Read by vLLM when it is first imported; a CPU's default is nearly all memory.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

GOLDEN = Path(__file__).parent.parent / "golden"
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Starts in half the time."""
SETTINGS: dict[str, Any] = {
    "model": str(GOLDEN / "sdar"),
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 1024,
    "max_num_seqs": 16,
    "diffusion_config": {"block_length": 16},
    "disable_log_stats": False,
    "seed": 0,
}


def started(**settings: Any) -> Iterator[Any]:
    """A multi-process engine, for a fixture to ``yield from``.

    Args:
        **settings: Engine arguments that differ from ``SETTINGS``.
    """
    from vllm import LLM

    llm = LLM(**SETTINGS | settings)
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="session")
def golden_cases() -> list[dict[str, Any]]:
    """The SDAR cases: prompts, published parameters, published ids."""
    return cases_of(GOLDEN / "sdar")


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A multi-process engine of the golden SDAR checkpoint, float32, eager."""
    yield from started()


@pytest.fixture(scope="session")
def bundled() -> Iterator[Any]:
    """A multi-process engine of the bundled model, with nothing but defaults."""
    from vllm import LLM
    from vllm.v1.diffusion import bundled_path

    llm = LLM(model=bundled_path(), enforce_eager=True, disable_log_stats=False)
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For references, whose products are tiny: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_elsewhere(
    batches: list[list[Case]], env: dict[str, str] | None = None, **settings: Any
) -> list[list[dict[str, Any]]]:
    """Runs batches of cases in an engine of their own, in another process.

    Args:
        batches: Each is one call of ``LLM.generate``.
        env: Environment variables to add.
        **settings: Engine arguments that differ from ``SETTINGS``.

    Returns:
        For every request its ``token_ids``, ``steps`` and ``unmask_steps``; the last
        entry of every batch holds the engine's counters.
    """
    task = {
        "settings": {**SETTINGS, **settings},
        "batches": [[vars(case) for case in batch] for batch in batches],
    }
    done = warm.run("tests.engine.run_batches", input=json.dumps(task), env={**os.environ, **(env or {})})
    assert done.returncode == 0, done.stderr[-6000:]
    results: list[list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return results
