"""Drops GPU code that a machine cannot run from a compiled object: for hosts that are hard to reach.

An object's ``.nv_fatbin`` section holds containers (magic ``0xBA55ED50``) of one entry for each
architecture. An entry that is not wanted is overwritten with zeros, its header kept: offsets stay as they
are, the loader takes another entry as it would have anyway, and the file packs to what is left. The layout
was read off objects made by nvcc 13 (``cuobjdump --list-elf`` shows the same entries).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from build_support.errors import BuildError

_MAGIC = struct.pack("<I", 0xBA55ED50)
_CONTAINER = struct.Struct("<IHHQ")  # magic, version, header's size, bytes that follow
_ENTRY = struct.Struct("<HHIQ")  # kind (1: PTX, 2: machine code), version, header's size, payload's size
_ARCHITECTURE = 28  # offset of the compute capability in an entry's header, as 90 for 9.0


@dataclass(frozen=True)
class _Code:
    """One entry: where its payload lies, and what it is for."""

    start: int
    size: int
    ptx: bool
    architecture: int


def keep_architecture(path: Path, wanted: int) -> tuple[int, int]:
    """Blank, in place, every entry that a device of one compute capability does not load.

    In each container that is machine code of the capability's own, or else of the same major one, or
    else the newest PTX that it can translate.

    Args:
        path: a shared object.
        wanted: compute capability times ten: 90 for an H100.

    Returns:
        bytes of GPU code that stay, and that were blanked.

    Raises:
        BuildError: the object holds GPU code, but none that such a device runs.
    """
    content = bytearray(path.read_bytes())
    kept = blanked = 0
    unwanted: list[_Code] = []
    for container in _containers(content):
        used = _used(container, wanted)
        for code in container:
            if code in used:
                kept += code.size
            else:
                unwanted.append(code)
                blanked += code.size
    if unwanted and not kept:
        raise BuildError(f"{path.name} holds no GPU code for compute capability {wanted / 10}.")
    for code in unwanted:
        content[code.start : code.start + code.size] = bytes(code.size)
    if unwanted:
        path.write_bytes(content)
    return kept, blanked


def _used(container: list[_Code], wanted: int) -> list[_Code]:
    machine = [c for c in container if not c.ptx and c.architecture // 10 == wanted // 10]
    runs = [c for c in machine if c.architecture <= wanted]
    if not runs:
        runs = [c for c in container if c.ptx and c.architecture <= wanted]
    best = max((c.architecture for c in runs), default=None)
    return [c for c in runs if c.architecture == best]


def _containers(content: bytearray) -> list[list[_Code]]:
    found = []
    at = content.find(_MAGIC)
    while at >= 0:
        end = at + 4
        if at + _CONTAINER.size <= len(content):
            _, version, header, size = _CONTAINER.unpack_from(content, at)
            if version == 1 and header == _CONTAINER.size and at + header + size <= len(content):
                end = at + header + size
                found.append(_entries(content, at + header, end))
        at = content.find(_MAGIC, end)
    return found


def _entries(content: bytearray, at: int, end: int) -> list[_Code]:
    found = []
    while at + _ARCHITECTURE + 4 <= end:
        kind, _, header, size = _ENTRY.unpack_from(content, at)
        if kind not in (1, 2) or header <= _ARCHITECTURE or at + header + size > end:
            break
        (architecture,) = struct.unpack_from("<I", content, at + _ARCHITECTURE)
        found.append(_Code(at + header, size, kind == 1, architecture))
        at += header + size
    return found
