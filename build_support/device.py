"""Chooses the device a build is for: ``VLLM_TARGET_DEVICE=auto|cpu|cuda``."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from build_support.errors import BuildError

PIP_ISOLATED = "pip-build-env-"


def _users_torch() -> Path | None:
    """Return ``version.py`` of the user's torch.

    The torch of pip's isolated build environment is none: the build itself asked for it, and on
    many machines without a GPU the index gives a CUDA build.
    """
    places = [Path(sysconfig.get_path("platlib")) / "torch" / "version.py"]
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None and PIP_ISOLATED not in spec.origin:
        places.insert(0, Path(spec.origin).with_name("version.py"))
    return next((place for place in places if place.is_file()), None)


def torch_cuda() -> str | None:
    """Return the CUDA version that the user's torch was built for, without importing it."""
    version = _users_torch()
    if version is None:
        return None
    for node in ast.parse(version.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        if "cuda" in names and isinstance(node.value, ast.Constant):
            return str(node.value.value) if node.value.value else None
    return None


def cpu_fork() -> bool:
    """Say whether the user's environment has this distribution, built for a CPU.

    Its torch says nothing then: it came as a requirement, and where the index gives a CUDA build,
    a second install of the same checkout would be one for CUDA.
    """
    found = Path(sysconfig.get_path("platlib")).glob("vllm-*+diffusion.*.cpu.dist-info")
    return next(found, None) is not None


def nvcc() -> str | None:
    """Return the path of the CUDA compiler, if there is one."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))


def gpu() -> bool:
    """Say whether the machine has a usable NVIDIA GPU: one that ``nvidia-smi`` lists."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    done = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and "GPU " in done.stdout


def resolve_device(asked: str | None = None) -> str:
    """Return ``cpu`` or ``cuda``.

    ``auto`` takes CUDA where the user's torch is a CUDA build, or where there is both nvcc and
    a GPU. nvcc alone is not a GPU. Without a GPU, what was installed for a CPU stays so.

    Args:
        asked: ``cpu``, ``cuda`` or ``auto``; by default ``VLLM_TARGET_DEVICE``, else ``auto``.

    Raises:
        BuildError: something else was asked for.
    """
    wanted = (asked or os.environ.get("VLLM_TARGET_DEVICE") or "auto").lower()
    if wanted in ("cpu", "cuda"):
        return wanted
    if wanted != "auto":
        raise BuildError(f"VLLM_TARGET_DEVICE is {wanted!r}; set it to auto, cpu or cuda, or unset it.")
    if torch_cuda() and (not cpu_fork() or gpu()):
        return "cuda"
    return "cuda" if nvcc() and gpu() else "cpu"
