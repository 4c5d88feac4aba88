#!/usr/bin/env python3
"""Checks what is in a built wheel: only ours and upstream's, all of both, and objects that load.

    tools/check_wheel.py WHEEL          with --no-load where torch is missing

Compared with the pinned artefacts (from the cache or ``VLLM_UPSTREAM_DIR``), the series and the overlay.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from build_support import paths, series
from build_support.errors import BuildError
from build_support.fetch import fetch
from build_support.home import pinned
from build_support.kernels import EXTENSION
from build_support.overlay import overlay_files
from build_support.pin import load_pin

_LICENCES = ("LICENSE", "NOTICE", "upstream/LICENSE")
_LOAD = """
import ctypes, pathlib, sys, torch
home = pathlib.Path(sys.argv[1])
for name in sys.argv[2:]:
    if name.endswith("_diffusion_C.abi3.so"):
        torch.ops.load_library(str(home / name))
    else:
        ctypes.CDLL(str(home / name))
print(len(dir(torch.ops.vllm_diffusion)))
torch.ops.vllm_diffusion.row_stats, torch.ops.vllm_diffusion.unmask
"""


def record_faults(wheel: zipfile.ZipFile, info: str) -> list[str]:
    """Return where RECORD and the archive differ."""
    rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(wheel.read(f"{info}/RECORD").decode()))}
    names = wheel.namelist()
    faults = [f"{name}: not in RECORD" for name in names if name not in rows]
    faults += [f"{name}: in RECORD only" for name in rows if name not in names]
    faults += [f"{name}: in the archive twice" for name in set(names) if names.count(name) > 1]
    for name, (stated, size) in rows.items():
        if name == f"{info}/RECORD" or name not in names:
            continue
        content = wheel.read(name)
        code = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        if (stated, size) != (f"sha256={code}", str(len(content))):
            faults.append(f"{name}: RECORD states another content")
    return faults


def expected(device: str) -> dict[str, bytes | None]:
    """Return path -> content of all that belongs under ``vllm/``; None for what the build makes."""
    pin = load_pin(paths.ROOT)
    files: dict[str, bytes | None] = {}
    with tempfile.TemporaryDirectory() as scratch:
        tree = pinned(paths.ROOT).pristine(Path(scratch))
        for path in (tree / "vllm").rglob("*"):
            if path.is_file():
                files[path.relative_to(tree).as_posix()] = path.read_bytes()
        patches = series.read_series(paths.ROOT / "patches")
        changed = series.apply_series(patches, series.tree_reader(tree))
    with zipfile.ZipFile(fetch(pin.objects[device])) as objects:
        for name in objects.namelist():
            wanted = name.startswith("vllm/") and not name.endswith("/")
            if wanted and name not in files and (device == "cuda" or name.endswith(".so")):
                files[name] = objects.read(name)
    files |= {name: text.encode() for name, text in changed.items()}
    files |= {name: (paths.ROOT / name).read_bytes() for name in overlay_files(paths.ROOT)}
    return files | {"vllm/_version.py": None, EXTENSION: None}


def content_faults(wheel: zipfile.ZipFile, info: str, device: str) -> list[str]:
    """Return what is missing, what is changed, and what does not belong."""
    wanted = expected(device)
    names = set(wheel.namelist())
    faults = [f"{name}: lost" for name in wanted if name not in names]
    faults += [
        f"{name}: not what upstream, the series and the overlay make"
        for name, content in wanted.items()
        if content is not None and name in names and wheel.read(name) != content
    ]
    strange = [name for name in names if name not in wanted and not name.startswith(f"{info}/")]
    faults += [f"{name}: does not belong" for name in strange]
    faults += [
        f"{info}/licenses/{name}: lost" for name in _LICENCES if f"{info}/licenses/{name}" not in names
    ]
    return faults


def load_faults(wheel: zipfile.ZipFile) -> list[str]:
    """Load our extension and upstream's in a process of their own; return what was said if that failed."""
    names = [name for name in wheel.namelist() if name in (EXTENSION, "vllm/_C.abi3.so")]
    with tempfile.TemporaryDirectory() as home:
        for name in wheel.namelist():
            if name.endswith(".so") or ".so." in name:
                wheel.extract(name, home)
        command = [sys.executable, "-c", _LOAD, home, *names]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"the objects do not load: {done.stderr.strip().splitlines()[-1]}"]
    return [] if len(names) == 2 else [f"of the two extensions there is only {names}"]


def main() -> int:
    """Check one wheel."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--no-load", action="store_true")
    chosen = parser.parse_args()
    version = chosen.wheel.name.split("-")[1]
    device = "cpu" if version.endswith(".cpu") else "cuda"
    info = f"vllm-{version}.dist-info"
    try:
        with zipfile.ZipFile(chosen.wheel) as wheel:
            faults = record_faults(wheel, info) + content_faults(wheel, info, device)
            if not chosen.no_load:
                faults += load_faults(wheel)
            count = len(wheel.namelist())
        if version != load_pin(paths.ROOT).fork_version(device):
            faults.append(f"the version is {version}, not {load_pin(paths.ROOT).fork_version(device)}")
        if faults:
            raise BuildError(f"{chosen.wheel.name} is not sound:\n  " + "\n  ".join(faults))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{chosen.wheel.name}: {count} files, all of them upstream's, the series' or the overlay's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
