# SPDX-License-Identifier: Apache-2.0
"""Model Runner V2 on a CPU. These tests need the installed fork."""

import pytest

from vllm.triton_utils import HAS_TRITON
from vllm.v1.worker.cpu import runner_kernels

if HAS_TRITON:  # a GPU, or upstream's triton-cpu: nothing is replaced
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def registered() -> None:
    """Upstream's launchers reach our operators."""
    runner_kernels.register()
