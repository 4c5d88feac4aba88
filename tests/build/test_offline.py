"""Bundles for hosts without a network: wheels that are missing, GPU code that is left out, parts."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from build_support.errors import BuildError
from build_support.fatbin import keep_architecture
from build_support.host_wheels import canonical, fetch_missing, frozen_names
from build_support.paths import ROOT
from build_support.pin import load_pin


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """``tools/offline_bundle.py`` as a module."""
    spec = importlib.util.spec_from_file_location("offline_bundle", ROOT / "tools" / "offline_bundle.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_wheel(folder: Path, name: str, version: str, *requires: str, tag: str = "py3-none-any") -> None:
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    headers = "".join(f"Requires-Dist: {line}\n" for line in requires)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", f"VERSION = '{version}'\n")
        archive.writestr(f"{name}-{version}.data/scripts/{name}", "#!python\n")
        archive.writestr(f"{name}-{version}.data/purelib/{name}_more.py", "MORE = 1\n")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{headers}"
        )
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, and from nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_what_a_host_lacks_comes_with_what_that_needs(index: Path, tmp_path: Path) -> None:
    write_wheel(index, "alpha", "1.0", "beta>=2", "old; python_version < '3.12'", "gamma; extra == 'more'")
    write_wheel(index, "beta", "2.5", "here", "delta[fast]")
    write_wheel(index, "beta", "1.0")
    write_wheel(index, "delta", "1.0", "epsilon; extra == 'fast'", tag="cp312-cp312-manylinux_2_28_x86_64")
    write_wheel(index, "epsilon", "1.0", "unwanted", "alpha")
    out = tmp_path / "out"
    out.mkdir()
    names = fetch_missing(["alpha<2", "vllm"], {"here"}, "3.12", out, {"unwanted"})
    assert names == sorted(path.name for path in out.iterdir())
    assert [name.split("-")[:2] for name in names] == [
        ["alpha", "1.0"],
        ["beta", "2.5"],
        ["delta", "1.0"],
        ["epsilon", "1.0"],
    ]


def test_a_wheel_that_does_not_exist_is_named(index: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="nowhere"):
        fetch_missing(["nowhere==1"], set(), "3.12", tmp_path, set())


def test_frozen_names() -> None:
    assert frozen_names("Some_Thing==1.0\nother.one @ file:///x\n\n-e git+x\n") == {"some-thing", "other-one"}


def test_only_what_a_text_model_needs_is_brought(tool: ModuleType) -> None:
    """What is left out is upstream's own requirement still, and in upstream's names."""
    needs = {canonical(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) for line in upstream_needs()}
    assert needs >= tool.NOT_NEEDED
    assert {"torch", "transformers", "xgrammar", "msgspec", "fastapi"} <= needs - tool.NOT_NEEDED
    assert all(name == canonical(name) for name in tool.NOT_NEEDED)


def upstream_needs() -> tuple[str, ...]:
    return tuple(load_pin(ROOT).requirements["cuda"])


def test_the_fork_is_imported_without_what_is_left_out(tool: ModuleType) -> None:
    """The server, the engine, the worker and the models, where those projects are not installed."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("needs the installed fork")
    modules = {
        "opencv-python-headless": "cv2",
        "flashinfer-python": "flashinfer",
        "nvidia-cudnn-frontend": "cudnn",
        "nvidia-cutlass-dsl": "cutlass",
        "opentelemetry-exporter-otlp": "opentelemetry.exporter",
        "pynvvideocodec": "PyNvVideoCodec",
        "quack-kernels": "quack",
        "humming-kernels": "humming",
    }
    gone = {modules.get(name, name.replace("-", "_")) for name in tool.NOT_NEEDED}
    code = f"""
import importlib, importlib.util, sys
gone, find_spec = {gone!r}, importlib.util.find_spec
missing = lambda name: any(name == n or name.startswith(n + ".") for n in gone)
class Gone:
    def find_spec(self, name, path=None, target=None):
        if missing(name):
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Gone())
importlib.util.find_spec = lambda n, p=None: None if missing(n) else find_spec(n, p)
for name in {IMPORTED!r}:
    importlib.import_module(name)
assert not gone & {{name.split(".")[0] for name in sys.modules}}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


IMPORTED = (
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.core",
    "vllm.v1.worker.gpu_worker",
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.attention.backends.flash_attn",
    "vllm.model_executor.layers.quantization.fp8",
    "vllm.model_executor.models.llada2_moe",
    "vllm.model_executor.models.sdar",
    "vllm.v1.diffusion.worker.model_state",
    "vllm.v1.diffusion.cli.main",
)


def entry(kind: int, architecture: int, payload: bytes) -> bytes:
    header = struct.pack("<HHIQ", kind, 0x101, 64, len(payload)).ljust(28, b"\0")
    return (header + struct.pack("<I", architecture)).ljust(64, b"\0") + payload


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_gpu_code_that_a_device_cannot_use_is_blanked(tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    first = container(entry(2, 80, b"a" * 8), entry(2, 90, b"b" * 16), entry(1, 80, b"p" * 24))
    second = container(entry(2, 80, b"c" * 8), entry(1, 80, b"q" * 8), entry(2, 120, b"d" * 8))
    path.write_bytes(b"\x7fELF" + first + b"between" + second + b"end")
    size = path.stat().st_size
    assert keep_architecture(path, 90) == (16 + 8, 8 + 24 + 8 + 8)
    content = path.read_bytes()
    assert len(content) == size and content.startswith(b"\x7fELF") and content.endswith(b"end")
    # Its own machine code where there is some, else PTX that it can translate.
    assert b"b" * 16 in content and b"q" * 8 in content
    for gone in (b"a" * 8, b"p" * 8, b"c" * 8, b"d" * 8):
        assert gone not in content
    assert keep_architecture(path, 90)[0] == 24  # again: nothing that is used goes


def test_an_object_without_gpu_code_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.so"
    path.write_bytes(b"\x7fELF plain")
    assert keep_architecture(path, 90) == (0, 0)
    path.write_bytes(container(entry(2, 120, b"d" * 8)))
    with pytest.raises(BuildError, match=r"9\.0"):
        keep_architecture(path, 90)


def test_parts_are_put_together_and_checked(tool: ModuleType, index: Path, tmp_path: Path) -> None:
    write_wheel(index, "alpha", "1.0")
    content, out = tmp_path / "content", tmp_path / "out"
    (content / "site").mkdir(parents=True)
    out.mkdir()
    tool.add_wheels(content / "site", index)
    (content / "site" / "noise.bin").write_bytes(bytes(i * i % 251 for i in range(5000)))
    parts = tool.write_parts(content, out, 400, 1)
    assert len(parts) > 1 and all((out / name).stat().st_size <= 400 for name in parts)
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    (out / "bundle.json").write_text(json.dumps({"python": python, "parts": parts}))
    (out / "install.py").write_text(tool._INSTALL)

    def install(target: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(out / "install.py"), str(target)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = install(tmp_path / "target")
    assert done.returncode == 0 and "PYTHONPATH" in done.stdout, done.stderr
    site = tmp_path / "target" / "site"
    names = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert {"alpha/__init__.py", "alpha_more.py", "noise.bin", "alpha-1.0.dist-info/METADATA"} <= names
    assert not any(name.startswith(("alpha-1.0.data", "scripts")) for name in names)
    assert (site / "noise.bin").read_bytes() == (content / "site" / "noise.bin").read_bytes()
    (out / next(iter(parts))).write_bytes(b"broken")
    done = install(tmp_path / "again")
    assert done.returncode == 1 and "damaged" in done.stderr
