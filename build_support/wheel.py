"""Writes a wheel: a zip with a RECORD. Its bytes depend on nothing but what goes in."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path
from types import TracebackType

_DATE = (2020, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20
_LEVEL = 1  # the objects are 435 MB: a higher level costs minutes and saves little


class WheelWriter:
    """Writes one wheel; use as a context manager, which adds RECORD and puts the file in place.

    Args:
        path: the wheel.
        dist_info: name of its ``.dist-info`` folder.
    """

    def __init__(self, path: Path, dist_info: str) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._dist_info = dist_info
        self._zip = zipfile.ZipFile(self._part, "w")
        self._record: dict[str, str] = {}

    def __enter__(self) -> WheelWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            record = f"{self._dist_info}/RECORD"
            rows = [f"{_quoted(name)},{entry}\n" for name, entry in self._record.items()]
            rows.append(f"{record},,\n")
            self._zip.writestr(self._info(record, False), "".join(rows), compresslevel=_LEVEL)
        self._zip.close()
        if kind is None:
            self._part.replace(self._path)
        else:
            self._part.unlink()

    @staticmethod
    def _info(name: str, runs: bool) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name, _DATE)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = (0o100755 if runs else 0o100644) << 16
        return info

    def _enter(self, name: str, digest: bytes, size: int) -> None:
        assert name not in self._record, f"{name} is in the wheel twice"
        code = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        self._record[name] = f"sha256={code},{size}"

    def add_bytes(self, name: str, content: bytes) -> None:
        """Add a file by content."""
        self._zip.writestr(self._info(name, False), content, compresslevel=_LEVEL)
        self._enter(name, hashlib.sha256(content).digest(), len(content))

    def add_file(self, name: str, path: Path) -> None:
        """Add a file by path; it stays executable if it is."""
        status = path.stat()
        info = self._info(name, bool(status.st_mode & 0o100))
        info.file_size = status.st_size
        info._compresslevel = _LEVEL  # type: ignore[attr-defined]  # open() takes no level
        digest = hashlib.sha256()
        with path.open("rb") as source, self._zip.open(info, "w") as out:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                out.write(chunk)
        self._enter(name, digest.digest(), status.st_size)


def _quoted(name: str) -> str:
    """Quote a name as a CSV field where it must be."""
    return '"' + name.replace('"', '""') + '"' if any(c in name for c in ',"\n') else name
