"""Finds an artefact's address the way pip would: through pip's own configuration.

Nothing here names a package index. pip is asked, as a program, for its settings (files and
``PIP_*`` variables) and for its built-in default.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import urllib.parse
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from build_support.errors import BuildError
from build_support.pin import Artefact
from build_support.web import Web

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_DEFAULT_INDEX = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"


@dataclass(frozen=True)
class PipSettings:
    """What pip's configuration says about where packages come from.

    Attributes:
        indexes: simple-index addresses, the main one first.
        find_links: folders, files or pages of links.
        cert: path of a CA bundle, or None for the system's.
        trusted: hosts (or host:port) whose certificates are not checked.
        proxy: proxy address, or None for the environment's.
        timeout: seconds to wait for a connection or for bytes.
    """

    indexes: tuple[str, ...]
    find_links: tuple[str, ...]
    cert: str | None = None
    trusted: tuple[str, ...] = ()
    proxy: str | None = None
    timeout: float = 60.0


def _pip(*arguments: str) -> str:
    """Run this interpreter with ``arguments`` and return what it prints, or '' if it fails."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def _config(listing: str) -> dict[str, str]:
    """Flatten ``pip config list``: for each option the value that ``pip download`` would see."""
    ranks = {"global": 0, "download": 1, ":env:": 2}
    best: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        key, found, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if not found or section not in ranks:
            continue
        rank = ranks[section]
        if option not in best or best[option][0] <= rank:
            best[option] = (rank, str(ast.literal_eval(value)))
    return {option: value for option, (_, value) in best.items()}


def pip_settings() -> PipSettings:
    """Read pip's configuration; where pip cannot be run, only the ``PIP_*`` variables count."""
    options = _config(_pip("-m", "pip", "config", "list"))
    for name, value in os.environ.items():
        if name.startswith("PIP_") and value:
            options[name[4:].lower().replace("_", "-")] = value
    indexes: list[str] = []
    if options.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
        main = options.get("index-url") or _pip("-c", _DEFAULT_INDEX).strip()
        indexes = [*([main] if main else []), *options.get("extra-index-url", "").split()]
    timeout = options.get("timeout") or options.get("default-timeout") or "60"
    return PipSettings(
        indexes=tuple(indexes),
        find_links=tuple(options.get("find-links", "").split()),
        cert=options.get("cert"),
        trusted=tuple(options.get("trusted-host", "").split()),
        proxy=options.get("proxy"),
        timeout=float(timeout),
    )


class _Links(HTMLParser):
    """Collects (text, href) of a page's anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the address of an anchor."""
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.links.append(href)


def _file_in_page(body: bytes, content_type: str, base: str, file: str) -> str | None:
    """Return the address of ``file`` in a simple-index page (PEP 691 JSON or PEP 503 HTML)."""
    if "json" in content_type:
        hrefs: list[str] = [entry["url"] for entry in json.loads(body)["files"]]
    else:
        parser = _Links()
        parser.feed(body.decode("utf-8", "replace"))
        hrefs = parser.links
    for href in hrefs:
        address = urllib.parse.urldefrag(urllib.parse.urljoin(base, href)).url
        name = urllib.parse.unquote(urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1])
        if name == file:
            return address
    return None


def _page(web: Web, address: str, file: str) -> str | None:
    """Look for ``file`` on one page; a ``file:`` folder is read as pip reads it."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme == "file":
        path = Path(urllib.parse.unquote(parts.path))
        if path.is_dir() and (path / file).is_file():
            return (path / file).as_uri()
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            return None
        return _file_in_page(path.read_bytes(), "text/html", path.as_uri(), file)
    answer = web.get(address, {"Accept": _ACCEPT})
    return None if answer is None else _file_in_page(answer.body, answer.kind, answer.url, file)


def locate(artefact: Artefact, settings: PipSettings, web: Web) -> str:
    """Return the address of an artefact.

    Raises:
        BuildError: no configured place could be reached, or none of them has the file.
    """
    project = re.sub(r"[-_.]+", "-", artefact.project).lower()
    pages: list[str] = []
    for place in settings.find_links:
        pages.append(place if "://" in place else Path(place).expanduser().absolute().as_uri())
    pages += [f"{index.rstrip('/')}/{project}/" for index in settings.indexes]
    failures: list[str] = []
    for page in pages:
        try:
            found = _page(web, page, artefact.file)
        except (OSError, ValueError, KeyError) as error:
            failures.append(str(error))
            continue
        if found:
            return found
    if failures:
        raise BuildError(
            f"{artefact.file} is not in the cache and the package index cannot be reached "
            f"({failures[-1]}); connect to the network, or put the file into a folder and name "
            "it in VLLM_UPSTREAM_DIR."
        )
    raise BuildError(
        f"{artefact.file} is on none of the package indexes that pip is configured with; put the "
        "file into a folder and name it in VLLM_UPSTREAM_DIR."
    )
