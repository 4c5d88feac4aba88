"""Brings the pinned artefacts into the cache, verified; ``python -m build_support.fetch``.

An artefact comes from ``VLLM_UPSTREAM_DIR`` if that is set (and from nowhere else), else from the
cache, else from the package index. A broken download goes on where it stopped.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import sys
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from build_support import paths
from build_support.device import resolve_device
from build_support.errors import BuildError
from build_support.index import locate, pip_settings
from build_support.pin import Artefact, Pin, load_pin
from build_support.progress import Progress
from build_support.web import Web

_CHUNK = 1 << 20
_ATTEMPTS = 4


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _wrong_hash(artefact: Artefact, where: str, found: str) -> BuildError:
    return BuildError(
        f"{artefact.file} from {where} has sha256 {found} where upstream.toml pins "
        f"{artefact.sha256}; delete it and fetch it again, or find out who changed it."
    )


def _download(artefact: Artefact, part: Path, web: Web, address: str) -> None:
    """Append what is missing of ``part``.

    Raises:
        OSError: the connection failed; what arrived stays in ``part``.
    """
    have = part.stat().st_size if part.exists() else 0
    if have == artefact.size:
        return
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {}
    with web.open(address, headers) as response:
        goes_on = have > 0 and getattr(response, "status", None) == 206
        with part.open("ab" if goes_on else "wb") as out:
            progress = Progress(f"fetching {artefact.file}", artefact.size)
            done = have if goes_on else 0
            while chunk := response.read(_CHUNK):
                out.write(chunk)
                done += len(chunk)
                progress.show(done)
            progress.finish(done)
    if done < artefact.size:
        raise ConnectionError(f"the connection closed after {done} of {artefact.size} bytes")


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold a file of the cache; another build that wants it waits until it is there, or not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(target.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _from_index(artefact: Artefact, target: Path) -> None:
    """Download an artefact into the cache, resuming and retrying."""
    settings = pip_settings()
    web = Web(settings.cert, settings.trusted, settings.proxy, settings.timeout)
    address = locate(artefact, settings, web)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    resumed = part.exists()
    if resumed and part.stat().st_size > artefact.size:
        part.unlink()
    failure: Exception | None = None
    for _ in range(_ATTEMPTS):
        try:
            _download(artefact, part, web, address)
        except (OSError, HTTPException) as error:
            failure = error
            if isinstance(error, urllib.error.HTTPError) and error.code == 416:
                part.unlink(missing_ok=True)
            continue
        found = sha256(part)
        if found == artefact.sha256:
            part.replace(target)
            return
        part.unlink()
        if not resumed:
            raise _wrong_hash(artefact, "the package index", found)
        resumed = False  # what lay there from an earlier build may be at fault: once more, afresh
    raise BuildError(
        f"{artefact.file} could not be downloaded ({failure}); run the build again to go on where "
        "it stopped, or put the file into a folder and name it in VLLM_UPSTREAM_DIR."
    )


def fetch(artefact: Artefact) -> Path:
    """Return the path of a verified artefact, downloading it if need be.

    Raises:
        BuildError: it cannot be had, or its hash is wrong.
    """
    folder = paths.upstream_dir()
    if folder is not None:
        path = folder / artefact.file
        if not path.is_file():
            raise BuildError(
                f"VLLM_UPSTREAM_DIR ({folder}) lacks {artefact.file}; put it there, or unset the "
                "variable to download it."
            )
        found = sha256(path)
        if found != artefact.sha256:
            raise _wrong_hash(artefact, "VLLM_UPSTREAM_DIR", found)
        return path
    path = paths.cache_dir() / artefact.file
    if path.is_file() and sha256(path) == artefact.sha256:
        return path
    with _alone(path):  # Two builds must not append to one partial download.
        if path.is_file():
            if sha256(path) == artefact.sha256:
                return path
            path.unlink()
        _from_index(artefact, path)
    return path


def fetch_all(pin: Pin, device: str) -> tuple[Path, Path]:
    """Return the verified (source, objects) artefacts of a device."""
    source, objects = (fetch(artefact) for artefact in pin.artefacts(device))
    return source, objects


def main() -> int:
    """Fetch the artefacts of the chosen device into the cache."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--device", help="cpu, cuda or auto; default: VLLM_TARGET_DEVICE")
    try:
        for path in fetch_all(load_pin(paths.ROOT), resolve_device(parser.parse_args().device)):
            print(f"{path.name}: verified", file=sys.stderr)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
