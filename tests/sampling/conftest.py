# SPDX-License-Identifier: Apache-2.0
"""The sampler without a model. These tests need the installed fork."""

import pytest

from vllm.v1.worker.cpu import runner_kernels


@pytest.fixture(scope="session", autouse=True)
def registered() -> None:
    """Upstream's launchers reach our operators."""
    runner_kernels.register()
