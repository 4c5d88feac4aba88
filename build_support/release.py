"""Finds and fetches the sdist of an upstream release that is not pinned yet."""

from __future__ import annotations

import re
from http.client import HTTPException
from pathlib import Path

from build_support import paths
from build_support.errors import BuildError
from build_support.fetch import sha256
from build_support.index import Offer, offers, pip_settings
from build_support.pin import Artefact
from build_support.progress import Progress
from build_support.web import Web

LATEST = "latest"
PROJECT = "vllm"
_CHUNK = 1 << 20
_SDIST = re.compile(r"vllm-(\d+(?:\.\d+)+)\.tar\.gz")  # final releases only


def find_release(version: str) -> tuple[str, Artefact]:
    """Return a release's number and its sdist, fetched into the cache.

    The file's hash is the one that the index states; where it states none, what was received counts,
    and whoever reviews the series compares the hash that is written down.

    Args:
        version: a final release such as ``0.33.0``, or ``latest``.

    Raises:
        BuildError: there is no such release, or it cannot be fetched.
    """
    folder = paths.upstream_dir()
    if folder is not None:
        offered = {path.name: Offer(path.as_uri(), None) for path in folder.iterdir() if path.is_file()}
        version = _chosen(version, offered)
        return version, _artefact(folder / _file(version))
    kept = paths.cache_dir() / _file(version)
    if version != LATEST and kept.is_file():
        return version, _artefact(kept)
    settings = pip_settings()
    web = Web(settings.cert, settings.trusted, settings.proxy, settings.timeout)
    offered = offers(PROJECT, settings, web)
    version = _chosen(version, offered)
    kept = paths.cache_dir() / _file(version)
    if not kept.is_file():
        _download(web, offered[_file(version)], kept)
    return version, _artefact(kept)


def _file(version: str) -> str:
    return f"{PROJECT}-{version}.tar.gz"


def _artefact(path: Path) -> Artefact:
    return Artefact(PROJECT, path.name, sha256(path), path.stat().st_size)


def _key(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _chosen(version: str, offered: dict[str, Offer]) -> str:
    releases = sorted((match[1] for name in offered if (match := _SDIST.fullmatch(name))), key=_key)
    if version == LATEST and releases:
        return releases[-1]
    if version in releases:
        return version
    raise BuildError(
        f"the package index offers no sdist of {PROJECT} {version}; the newest it has is "
        f"{releases[-1] if releases else 'none'}."
    )


def _download(web: Web, offer: Offer, target: Path) -> None:
    """Fetch a file whose size is not known before, and check the hash that the index states."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    try:
        with web.open(offer.url, {}) as response, part.open("wb") as out:
            headers = getattr(response, "headers", {})
            total = int(headers.get("Content-Length") or 0)
            progress = Progress(f"fetching {target.name}", max(total, 1))
            while chunk := response.read(_CHUNK):
                out.write(chunk)
                progress.show(out.tell())
            done = out.tell()
            progress.finish(done)
        if done < total:
            raise ConnectionError(f"the connection closed after {done} of {total} bytes")
    except (OSError, HTTPException) as error:
        part.unlink(missing_ok=True)
        raise BuildError(
            f"{target.name} could not be downloaded ({error}); run the command again, or put the file "
            "into a folder and name it in VLLM_UPSTREAM_DIR."
        ) from error
    found = sha256(part)
    if offer.sha256 not in (None, found):
        part.unlink()
        raise BuildError(
            f"{target.name} has sha256 {found} where the package index states {offer.sha256}; run the "
            "command again, or find out who changed it."
        )
    part.replace(target)
