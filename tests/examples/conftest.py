# SPDX-License-Identifier: Apache-2.0
"""Installs the example packages, as their users do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.conftest import golden_cases
from tests.generation_loop.tiny import make_qwen3
from tests.warm import ROOT

__all__ = ["golden_cases"]

PACKAGES = ("unmasking_policy", "llada_guidance", "layer_contrast", "custom_model")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all examples installed into it."""
    target = tmp_path_factory.mktemp("site")
    sources = tmp_path_factory.mktemp("sources")  # pip builds in the source folder.
    for name in PACKAGES:
        copy = ["cp", "-r", str(ROOT / "examples" / name), str(sources)]
        subprocess.run(copy, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*pip, "--no-index", "--target", str(target), *(str(sources / name) for name in PACKAGES)],
        check=True,
        capture_output=True,
    )
    return target


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny autoregressive checkpoint."""
    return make_qwen3(tmp_path_factory.mktemp("qwen3"))
