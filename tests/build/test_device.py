"""``VLLM_TARGET_DEVICE``: auto takes CUDA for a CUDA torch, or for nvcc with a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.build.conftest import Repo


def tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("torch", "nvcc", "gpu", "device"),
    [
        ("None", False, False, "cpu"),
        ("None", True, False, "cpu"),  # nvcc alone is not a GPU
        ("None", False, True, "cpu"),  # nor can a GPU alone be compiled for
        ("None", True, True, "cuda"),
        ("'13.0'", False, False, "cuda"),
    ],
)
def test_auto(repo: Repo, tmp_path: Path, torch: str, nvcc: bool, gpu: bool, device: str) -> None:
    version = Path(repo.env["PYTHONPATH"]) / "torch" / "version.py"
    version.write_text(version.read_text().replace("= None", f"= {torch}"))
    tools = tmp_path / "tools"
    tool(tools, "nvidia-smi", "echo 'GPU 0: a GPU'" if gpu else "echo no devices; exit 9")
    if nvcc:
        tool(tools, "nvcc", "")
    env = {"PATH": str(tools), "CUDA_HOME": str(tmp_path / "none"), "VLLM_TARGET_DEVICE": "auto"}
    code = (
        "import sysconfig; sysconfig.get_path = lambda name: '/nowhere'\n"
        "from build_support.device import resolve_device; print(resolve_device())"
    )
    done = repo.python("-c", code, **env)
    assert done.stdout.strip() == device, done.stderr


@pytest.mark.parametrize(
    ("installed", "gpu", "device"),
    [
        ("0.32.0+diffusion.1.cpu", False, "cpu"),  # the CUDA build of torch came with it
        ("0.32.0+diffusion.1.cpu", True, "cuda"),
        ("0.32.0+diffusion.1", False, "cuda"),
        ("0.32.0", False, "cuda"),
    ],
)
def test_a_second_install_is_for_the_device_of_the_first(
    repo: Repo, tmp_path: Path, installed: str, gpu: bool, device: str
) -> None:
    version = Path(repo.env["PYTHONPATH"]) / "torch" / "version.py"
    version.write_text(version.read_text().replace("= None", "= '13.0'"))
    (tmp_path / "site" / f"vllm-{installed}.dist-info").mkdir(parents=True)
    tools = tmp_path / "tools"
    tool(tools, "nvidia-smi", "echo 'GPU 0: a GPU'" if gpu else "exit 9")
    env = {"PATH": str(tools), "CUDA_HOME": str(tmp_path / "none"), "VLLM_TARGET_DEVICE": "auto"}
    code = (
        f"import sysconfig; sysconfig.get_path = lambda name: {str(tmp_path / 'site')!r}\n"
        "from build_support.device import resolve_device; print(resolve_device())"
    )
    done = repo.python("-c", code, **env)
    assert done.stdout.strip() == device, done.stderr


def test_pips_own_build_environment_is_not_the_users_torch(repo: Repo, tmp_path: Path) -> None:
    isolated = tmp_path / "pip-build-env-x" / "torch"
    isolated.mkdir(parents=True)
    (isolated / "__init__.py").touch()
    (isolated / "version.py").write_text("cuda = '13.0'\n")
    code = (
        "import sysconfig; sysconfig.get_path = lambda name: '/nowhere'\n"
        "from build_support.device import torch_cuda; print(torch_cuda())"
    )
    done = repo.python("-c", code, PYTHONPATH=str(isolated.parent))
    assert done.stdout.strip() == "None", done.stderr


def test_an_unknown_device_is_refused(repo: Repo, tmp_path: Path) -> None:
    done = repo.hook("prepare_metadata_for_build_wheel", str(tmp_path), VLLM_TARGET_DEVICE="tpu")
    repo.fails(done, "VLLM_TARGET_DEVICE", "'tpu'", "auto, cpu or cuda")
