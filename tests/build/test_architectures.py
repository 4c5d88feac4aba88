"""Which GPUs the kernels are compiled for, as CMake itself decides it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from build_support.paths import ROOT

CMAKE = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
RULE = ROOT / "csrc" / "cuda" / "architectures.cmake"
DEFAULT = "80-real;90a-real;90-virtual"

pytestmark = pytest.mark.skipif(CMAKE is None, reason="needs cmake")


def run(arguments: list[str], archs: str | None) -> str:
    """What cmake printed."""
    assert CMAKE is not None
    environment = {name: value for name, value in os.environ.items() if name != "CUDAARCHS"}
    environment |= {} if archs is None else {"CUDAARCHS": archs}
    done = subprocess.run(
        [CMAKE, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("archs", "defined", "expected"),
    [
        (None, None, DEFAULT),
        ("", None, DEFAULT),
        ("90a-real", None, "90a-real"),
        ("80-real;120-real", None, "80-real;120-real"),
        ("80-real", "90a-real", "90a-real"),
    ],
)
def test_who_decides(archs: str | None, defined: str | None, expected: str, tmp_path: Path) -> None:
    """``-D`` before the environment, the environment before the default."""
    script = tmp_path / "script.cmake"
    script.write_text(f'include({RULE})\nmessage("<${{CMAKE_CUDA_ARCHITECTURES}}>")\n')
    given = [] if defined is None else [f"-DCMAKE_CUDA_ARCHITECTURES={defined}"]
    assert f"<{expected}>" in run([*given, "-P", str(script)], archs)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_fresh_configure_obeys_the_environment(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    ninja = shutil.which("ninja") or str(Path(sys.executable).parent / "ninja")
    settings = [
        "-DVLLM_TARGET_DEVICE=cuda",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_MAKE_PROGRAM={ninja}",
    ]
    run(["-G", "Ninja", "-S", str(ROOT), "-B", str(tmp_path), *settings], "90a-real")
    commands = (tmp_path / "build.ninja").read_text("utf-8")
    assert "sm_90a" in commands
    assert "sm_80" not in commands and "compute_80" not in commands
