"""Order of the suites, and threads. What upstream must have comes first: it explains others' failures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import warm

_FIRST = "upstream_contract"

# Two tests run at a time: an engine of a small model is fastest with one thread, on whichever core is free.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
warm.install()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the contract with upstream before every other suite; their own orders stay."""
    items.sort(key=lambda item: _FIRST not in Path(item.path).parts)
