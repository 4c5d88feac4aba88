"""Unpacks the pinned artefacts: the Python tree of the sdist, the compiled objects of the wheel."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from build_support.errors import BuildError

LICENSE = "LICENSE"


def _safe(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts


def unpack_source(sdist: Path, target: Path) -> None:
    """Unpack the sdist's ``vllm/**`` and its licence into ``target``.

    Raises:
        BuildError: the archive has no such tree.
    """
    found = False
    with tarfile.open(sdist, "r:gz") as archive:
        for member in archive:
            _, _, name = member.name.partition("/")
            if not member.isfile() or not _safe(name):
                continue
            if not name.startswith("vllm/") and name != LICENSE:
                continue
            found = found or name.startswith("vllm/")
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = archive.extractfile(member)
            assert stream is not None
            path.write_bytes(stream.read())
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
    if not found:
        raise BuildError(f"{sdist.name} holds no vllm/ tree; the pin in upstream.toml names a wrong file.")


def unpack_objects(wheel: Path, device: str, target: Path) -> list[str]:
    """Lay the wheel's compiled objects into ``target``.

    For a CPU these are the ``*.so`` alone, for the wheel is a third party's. For CUDA it is
    whatever the official wheel has under ``vllm/`` and the sdist has not: objects, the front-end
    program, and third-party sources that upstream's build generates.

    Returns:
        the paths, relative to ``target``.

    Raises:
        BuildError: the wheel holds no compiled object.
    """
    written: list[str] = []
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            name = info.filename
            if info.is_dir() or not name.startswith("vllm/") or not _safe(name):
                continue
            path = target / name
            if path.exists() or (device == "cpu" and not name.endswith(".so")):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as stream, path.open("wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
            runs = name.endswith(".so") or (info.external_attr >> 16) & 0o100
            path.chmod(0o755 if runs else 0o644)
            written.append(name)
    if not any(name.endswith(".so") for name in written):
        raise BuildError(
            f"{wheel.name} holds no compiled objects; the pin in upstream.toml names a wrong file."
        )
    return written
