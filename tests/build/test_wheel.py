"""The wheel and the editable install, end to end on a made-up upstream."""

from __future__ import annotations

import base64
import csv
import dataclasses
import email
import hashlib
import importlib.machinery
import io
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from build_support.backend import _NEWEST, _OLDEST
from build_support.metadata import project_table
from build_support.paths import ROOT

if TYPE_CHECKING:
    from tests.build.conftest import Index, Repo

INFO = "vllm-9.9.0+diffusion.7.cpu.dist-info"


def build(repo: Repo, folder: Path, hook: str = "build_wheel", **env: str) -> Path:
    folder.mkdir(exist_ok=True)
    done = repo.hook(hook, str(folder), **env)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


def test_content_is_upstream_patched_plus_overlay_plus_kernels(repo: Repo, tmp_path: Path) -> None:
    wheel = zipfile.ZipFile(build(repo, tmp_path / "out"))
    assert set(wheel.namelist()) == {
        "vllm/__init__.py",
        "vllm/_version.py",
        "vllm/_C.abi3.so",
        "vllm/_diffusion_C.abi3.so",
        "vllm/engine/__init__.py",
        "vllm/engine/core.py",
        "vllm/engine/ours.py",
        "vllm/model/table.json",
        "vllm/diffusion/__init__.py",
        "vllm/diffusion/assets/config.json",
        *(f"{INFO}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")),
        *(f"{INFO}/licenses/{name}" for name in ("LICENSE", "NOTICE", "upstream/LICENSE")),
        f"{INFO}/top_level.txt",
    }
    assert b'line12 = "ours"' in wheel.read("vllm/engine/core.py")
    assert wheel.read("vllm/_C.abi3.so").startswith(b"\x7fELF object")
    assert wheel.read(f"{INFO}/licenses/upstream/LICENSE") == b"upstream's licence\n"
    version: dict[str, object] = {}
    exec(wheel.read("vllm/_version.py"), version)
    assert version["__version__"] == "9.9.0+diffusion.7.cpu"
    assert version["__version_tuple__"] == (9, 9, 0, "diffusion.7.cpu")
    assert wheel.getinfo("vllm/_C.abi3.so").external_attr >> 16 & 0o111
    assert not any((repo.root / "build").iterdir())  # nothing is left behind


def test_record_is_right(repo: Repo, tmp_path: Path) -> None:
    wheel = zipfile.ZipFile(build(repo, tmp_path / "out"))
    rows = list(csv.reader(io.StringIO(wheel.read(f"{INFO}/RECORD").decode())))
    assert sorted(row[0] for row in rows) == sorted(wheel.namelist())
    for name, digest, size in rows:
        if name == f"{INFO}/RECORD":
            assert (digest, size) == ("", "")
            continue
        content = wheel.read(name)
        code = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={code}", len(content)), name


def test_name_tags_and_metadata_are_true(repo: Repo, tmp_path: Path) -> None:
    path = build(repo, tmp_path / "out")
    platform = re.sub("[-.]", "_", sysconfig.get_platform())
    assert path.name == f"vllm-9.9.0+diffusion.7.cpu-cp311-abi3-{platform}.whl"
    wheel = zipfile.ZipFile(path)
    assert f"Tag: cp311-abi3-{platform}" in wheel.read(f"{INFO}/WHEEL").decode()
    assert "Root-Is-Purelib: false" in wheel.read(f"{INFO}/WHEEL").decode()
    meta = email.message_from_bytes(wheel.read(f"{INFO}/METADATA"))
    assert (meta["Name"], meta["Version"]) == ("vllm", "9.9.0+diffusion.7.cpu")
    assert meta["Requires-Python"] == ">=3.11,<3.14"
    assert meta.get_all("Requires-Dist") == [
        "regex",
        "torch==2.13.0",
        'pytest; (python_version > "3") and extra == "test"',
    ]
    for name in meta.get_all("License-File") or []:
        assert f"{INFO}/licenses/{name}" in wheel.namelist()
    assert "vllm = vllm.entrypoints.cli.main:main" in wheel.read(f"{INFO}/entry_points.txt").decode()


def test_same_inputs_same_bytes(repo: Repo, tmp_path: Path) -> None:
    names = [build(repo, tmp_path / folder) for folder in ("one", "two")]
    one, two = ({info.filename: info.CRC for info in zipfile.ZipFile(name).infolist()} for name in names)
    kernel = "vllm/_diffusion_C.abi3.so"  # CMake's folder is in its debug information
    assert {k: v for k, v in one.items() if k not in (kernel, f"{INFO}/RECORD")} == {
        k: v for k, v in two.items() if k not in (kernel, f"{INFO}/RECORD")
    }


def test_cuda_takes_whatever_the_official_wheel_adds(repo: Repo, tmp_path: Path) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "nvcc").write_text("#!/bin/sh\n")
    (bin_folder / "nvcc").chmod(0o755)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    wheel = zipfile.ZipFile(build(repo, tmp_path / "out", VLLM_TARGET_DEVICE="cuda", PATH=path))
    assert wheel.read("vllm/third_party/gen.py") == b"G = 1\n"
    assert wheel.read("vllm/__init__.py").startswith(b"from ._version")  # the sdist's, not its own
    assert "vllm-9.9.0+diffusion.7.dist-info/METADATA" in wheel.namelist()


def test_metadata_downloads_nothing(repo: Repo, index: Index, tmp_path: Path) -> None:
    done = repo.hook("prepare_metadata_for_build_wheel", str(tmp_path))
    assert done.stdout.strip() == INFO, done.stderr
    assert (tmp_path / INFO / "METADATA").is_file()
    assert repo.hook("get_requires_for_build_wheel").stdout.strip() == "['torch==2.13.0']"
    assert index.log == [] and not Path(repo.env["VLLM_UPSTREAM_CACHE"]).exists()


def test_an_overlay_path_that_upstream_has(repo: Repo, tmp_path: Path) -> None:
    (repo.root / "vllm/engine/core.py").write_text("")
    repo.fails(repo.hook("build_wheel", str(tmp_path)), "vllm/engine/core.py", "upstream has too")


def test_an_overlay_path_that_the_objects_bring(repo: Repo, tmp_path: Path) -> None:
    (repo.root / "vllm/third_party").mkdir()
    (repo.root / "vllm/third_party/gen.py").write_text("")
    assert repo.hook("build_wheel", str(tmp_path)).returncode == 0  # not part of a CPU build
    cuda = repo.python(
        "-c",
        "from pathlib import Path; from build_support import assemble, backend, pin\n"
        "import tempfile; run = backend._plainly(assemble.assemble)\n"
        "run(Path('.'), pin.load_pin(Path('.')), 'cuda', Path(tempfile.mkdtemp()))",
    )
    repo.fails(cuda, "vllm/third_party/gen.py")


def test_a_patch_that_does_not_apply(repo: Repo, tmp_path: Path) -> None:
    patch = repo.root / "patches" / "core-hook.patch"
    patch.write_text(patch.read_text().replace("@@ -9,7 +9,7 @@", "@@ -10,7 +10,7 @@"))
    done = repo.hook("build_wheel", str(tmp_path))
    repo.fails(done, "core-hook", "hunk 1", "vllm/engine/core.py")


def test_no_compiler(repo: Repo, index: Index, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = repo.hook("build_wheel", str(tmp_path), PATH=str(empty), CXX="")
    repo.fails(done, "no C++ compiler", "install g++")
    assert index.log == []  # said before anything is downloaded
    done = repo.hook("build_wheel", str(tmp_path), CXX="/nowhere/c++")
    repo.fails(done, "/nowhere/c++", "CXX")


def test_no_nvcc(repo: Repo, tmp_path: Path) -> None:
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    env = {"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path), "CXX": ""}
    done = repo.hook("build_wheel", str(tmp_path), VLLM_TARGET_DEVICE="cuda", **env)
    repo.fails(done, "nvcc was not found", "VLLM_TARGET_DEVICE=cpu")


def test_kernels_that_do_not_compile(repo: Repo, tmp_path: Path) -> None:
    (repo.root / "csrc/tiny.cpp").write_text("no C++ at all\n")
    done = repo.hook("build_wheel", str(tmp_path))
    repo.fails(done, "the kernels did not compile")
    assert "tiny.cpp" in done.stderr
    assert list(tmp_path.glob("*.whl*")) == []


@pytest.mark.parametrize("version", ["(3, 10, 13)", "(3, 14, 0)"])
def test_unsupported_python(repo: Repo, version: str) -> None:
    code = f"import sys; sys.version_info = {version}; import build_support.backend"
    repo.fails(repo.python("-c", code), "is not supported", "3.11, 3.12 or 3.13")


def test_supported_pythons_are_said_once() -> None:
    oldest, newest = (".".join(map(str, version)) for version in (_OLDEST, _NEWEST))
    above = f"{_NEWEST[0]}.{_NEWEST[1] + 1}"
    project = project_table(ROOT)
    assert project["requires-python"] == f">={oldest},<{above}"
    named = [c.rsplit(" ", 1)[1] for c in project["classifiers"] if "Python ::" in c]
    assert (named[0], named[-1]) == (oldest, newest)


def test_sdist_builds_the_same_tree(repo: Repo, tmp_path: Path) -> None:
    done = repo.hook("build_sdist", str(tmp_path))
    assert done.stdout.strip() == "vllm-9.9.0+diffusion.7.tar.gz", done.stderr
    subprocess.run(["tar", "xf", done.stdout.strip()], cwd=tmp_path, check=True)
    base = tmp_path / "vllm-9.9.0+diffusion.7"
    assert (base / "PKG-INFO").is_file() and not list(base.rglob("*.pyc"))
    again = dataclasses.replace(repo, root=base)
    first, second = (
        set(zipfile.ZipFile(build(each, tmp_path / name)).namelist())
        for each, name in ((repo, "a"), (again, "b"))
    )
    assert first == second


def test_editable_is_live_and_incremental(repo: Repo, tmp_path: Path) -> None:
    def tree() -> Path:
        wheel = zipfile.ZipFile(build(repo, tmp_path / "out", "build_editable"))
        (pth,) = (name for name in wheel.namelist() if name.endswith(".pth"))
        assert not any(name.startswith("vllm/") for name in wheel.namelist())
        return Path(wheel.read(pth).decode().strip())

    def seen(expression: str) -> str:
        code = f"import vllm.diffusion, vllm.engine.core, vllm.engine.ours; print({expression})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=repo.env | {"PYTHONPATH": str(first), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    first = tree()
    assert (first / "vllm/_diffusion_C.abi3.so").is_file()
    assert seen("vllm.__version__") == "9.9.0+diffusion.7.cpu"
    assert seen("vllm.engine.core.line12") == "ours"
    (repo.root / "vllm/diffusion/__init__.py").write_text("LIVE = 'edited'\n")
    (repo.root / "vllm/diffusion/later.py").write_text("LATER = 3\n")
    assert seen("vllm.diffusion.LIVE") == "edited"
    assert seen("__import__('vllm.diffusion.later').diffusion.later.LATER") == "3"

    marker = first / "vllm" / "engine" / "core.py"
    before = marker.stat().st_mtime_ns
    built = (repo.root / "build/kernels-cpu/_diffusion_C.abi3.so").stat().st_mtime_ns
    (repo.root / "vllm/engine/ours.py").rename(repo.root / "vllm/engine/renamed.py")
    assert tree() == first and marker.stat().st_mtime_ns == before
    assert (repo.root / "build/kernels-cpu/_diffusion_C.abi3.so").stat().st_mtime_ns == built
    assert (first / "vllm/engine/renamed.py").is_symlink()
    assert not (first / "vllm/engine/ours.py").is_symlink()

    repo.add_patch("second-hook" + (repo.root / "patches/core-hook.patch").read_text()[9:])
    second = repo.root / "patches" / "second-hook.patch"
    second.write_text(second.read_text().replace("12", "13").replace("line11 = 11", "line11 = 11"))
    done = repo.hook("build_editable", str(tmp_path / "out"))
    repo.fails(done, "second-hook")
    assert first.is_dir()  # a failed assembly leaves the last good tree
    second.unlink()
    (repo.root / "patches/series").write_text("")
    assert tree() != first and not first.exists()


def test_platform_can_import_what_the_tag_says() -> None:
    assert ".abi3.so" in importlib.machinery.EXTENSION_SUFFIXES
