# SPDX-License-Identifier: Apache-2.0
"""Model Runner V2 on a CPU: these tests need the installed fork."""

import pytest

pytest.importorskip("vllm._diffusion_C", reason="the fork is not installed")

from vllm.triton_utils import HAS_TRITON

if HAS_TRITON:
    pytest.skip("Triton runs here, nothing is replaced", allow_module_level=True)

from vllm.v1.worker.cpu import runner_kernels


@pytest.fixture(scope="session", autouse=True)
def registered():
    """Upstream's launchers reach our operators."""
    runner_kernels.register()
