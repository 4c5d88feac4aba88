"""The checks of a wheel's content and of licences, on the made-up upstream."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.build.conftest import Repo

Change = Callable[[dict[str, bytes]], object]
INFO = "vllm-9.9.0+diffusion.7.cpu.dist-info"


@pytest.fixture
def wheel(repo: Repo, tmp_path: Path) -> Path:
    """Return a wheel of the small repository."""
    done = repo.hook("build_wheel", str(tmp_path))
    assert done.returncode == 0, done.stderr
    return tmp_path / done.stdout.splitlines()[-1]


def check(repo: Repo, wheel: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return repo.python("tools/check_wheel.py", str(wheel), *arguments)


def test_a_sound_wheel(repo: Repo, wheel: Path) -> None:
    done = check(repo, wheel, "--no-load")
    assert done.returncode == 0, done.stderr
    assert "18 files" in done.stdout


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda files: files.pop("vllm/engine/ours.py"), "vllm/engine/ours.py: lost"),
        (lambda files: files.pop("vllm/_C.abi3.so"), "vllm/_C.abi3.so: lost"),
        (lambda files: files.pop("vllm/_diffusion_C.abi3.so"), "vllm/_diffusion_C.abi3.so: lost"),
        (lambda files: files.pop("vllm/model/table.json"), "vllm/model/table.json: lost"),
        (lambda files: files.pop(f"{INFO}/licenses/NOTICE"), "licenses/NOTICE: lost"),
        (lambda files: files.update({"setup.py": b""}), "setup.py: does not belong"),
        (lambda files: files.update({"vllm/x.py": b""}), "vllm/x.py: does not belong"),
        (
            lambda files: files.update({"vllm/engine/core.py": b"line12 = 12\n"}),
            "vllm/engine/core.py: not what upstream",
        ),
        (lambda files: files.update({"vllm/engine/core.py": b""}), "RECORD states another content"),
    ],
)
def test_an_unsound_wheel(repo: Repo, wheel: Path, change: Change, fault: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    done = check(repo, wheel, "--no-load")
    assert done.returncode == 1 and fault in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_objects_that_do_not_load(repo: Repo, wheel: Path) -> None:
    done = check(repo, wheel)  # upstream's object is made up, and so is torch
    assert done.returncode == 1 and "the objects do not load" in done.stderr


def test_a_shipped_file_without_its_licence(repo: Repo) -> None:
    done = repo.python("tools/check_licences.py")
    assert done.returncode == 1
    assert "vllm/engine/ours.py: the first line is not '# SPDX" in done.stderr


def test_an_environment_without_the_fork(repo: Repo) -> None:
    shutil.rmtree(repo.root / "vllm")
    code = (
        "import importlib.metadata as m, sys\n"
        "def none(name): raise m.PackageNotFoundError(name)\n"
        "m.requires = none\n"
        "sys.path.insert(0, 'tools'); import check_licences; sys.exit(check_licences.main())"
    )
    done = repo.python("-c", code)
    assert done.returncode == 1 and "run make install first" in done.stderr
