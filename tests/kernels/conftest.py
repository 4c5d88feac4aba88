# SPDX-License-Identifier: Apache-2.0
"""Every kernel test runs on each device; without a GPU the CUDA half is skipped."""

import pytest
import torch


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    return torch.device(request.param)
