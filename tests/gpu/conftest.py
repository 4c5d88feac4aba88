# SPDX-License-Identifier: Apache-2.0
"""These tests need a GPU; elsewhere they are skipped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def _reason() -> str | None:
    """Why the tests cannot run here, if they cannot."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "no GPU that torch can use"
    return None


if _reason() is None:
    # Read by vLLM when it is first imported. In one process, engines start in seconds.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # These tests have used CUDA when an engine of several GPUs starts its workers.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    # Triton multiplies float32 in tf32 where nothing is said; ids are compared with float32.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips this folder's tests where there is no GPU."""
    reason = _reason()
    here = Path(__file__).parent
    for item in items:
        if reason and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def golden_sdar() -> list[dict[str, Any]]:
    """The SDAR cases: prompts, published parameters, published ids."""
    path = Path(__file__).parent.parent / "golden" / "sdar" / "cases.json"
    cases: list[dict[str, Any]] = json.loads(path.read_text())["cases"]
    assert cases
    return cases
