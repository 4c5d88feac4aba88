"""Writes the fork's own sdist: what a wheel is built from, but for the pinned artefacts."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

from build_support.metadata import NAME, metadata
from build_support.overlay import overlay_files
from build_support.pin import Pin

_FILES = (
    *("upstream.toml", "pyproject.toml", "setup.py", "CMakeLists.txt", "Makefile"),
    *("LICENSE", "NOTICE", "README.md", "CHANGELOG.md"),
)
_FOLDERS = ("build_support", "patches", "csrc", "tools", "docs", "tests")


def _sources(root: Path) -> list[str]:
    """Return the files of the sdist, relative to ``root``."""
    files = [name for name in _FILES if (root / name).is_file()]
    for folder in _FOLDERS:
        files += [
            path.relative_to(root).as_posix()
            for path in (root / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
    return sorted([*files, *overlay_files(root)])


def write_sdist(root: Path, pin: Pin, folder: Path) -> str:
    """Write the sdist into ``folder`` and return its file name.

    Its version is the one without a device; which device it becomes is unmasked where it is built.
    """
    base = f"{NAME}-{pin.fork_version('cuda')}"
    with (
        (folder / f"{base}.tar.gz").open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        contents = {name: (root / name).read_bytes() for name in _sources(root)}
        contents["PKG-INFO"] = metadata(root, pin, "cuda").encode("utf-8")
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{base}/{name}")
            member.size = len(content)
            source = root / name
            runs = source.is_file() and bool(source.stat().st_mode & 0o100)
            member.mode = 0o755 if runs else 0o644
            archive.addfile(member, io.BytesIO(content))
    return f"{base}.tar.gz"
