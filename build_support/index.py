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


@dataclass(frozen=True)
class Offer:
    """A file that an index offers: its address, and its sha256 where the page gives one."""

    url: str
    sha256: str | None


def _offers_in_page(body: bytes, content_type: str, base: str) -> dict[str, Offer]:
    """Return file name -> offer of a simple-index page (PEP 691 JSON or PEP 503 HTML)."""
    found: list[tuple[str, str | None]]
    if "json" in content_type:
        entries = json.loads(body)["files"]
        found = [(entry["url"], entry.get("hashes", {}).get("sha256")) for entry in entries]
    else:
        parser = _Links()
        parser.feed(body.decode("utf-8", "replace"))
        found = [(href, None) for href in parser.links]
    offers: dict[str, Offer] = {}
    for href, digest in found:
        address, fragment = urllib.parse.urldefrag(urllib.parse.urljoin(base, href))
        name = urllib.parse.unquote(urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1])
        stated = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
        offers.setdefault(name, Offer(address, digest or (stated[1] if stated else None)))
    return offers


def _page(web: Web, address: str) -> dict[str, Offer]:
    """Read one page; a ``file:`` folder is read as pip reads it."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme == "file":
        path = Path(urllib.parse.unquote(parts.path))
        files = [entry for entry in path.iterdir() if entry.is_file()] if path.is_dir() else []
        offers = {entry.name: Offer(entry.as_uri(), None) for entry in files}
        path = path / "index.html" if path.is_dir() else path
        if path.is_file():
            offers = _offers_in_page(path.read_bytes(), "text/html", path.as_uri()) | offers
        return offers
    answer = web.get(address, {"Accept": _ACCEPT})
    return {} if answer is None else _offers_in_page(answer.body, answer.kind, answer.url)


def _pages(name: str, settings: PipSettings) -> list[str]:
    """Return the addresses at which pip would look for a project, in its order."""
    project = re.sub(r"[-_.]+", "-", name).lower()
    pages = [
        place if "://" in place else Path(place).expanduser().absolute().as_uri()
        for place in settings.find_links
    ]
    return pages + [f"{index.rstrip('/')}/{project}/" for index in settings.indexes]


def offers(project: str, settings: PipSettings, web: Web) -> dict[str, Offer]:
    """Return file name -> offer of everything that the configured places have of a project.

    Raises:
        BuildError: none of them could be reached.
    """
    found: dict[str, Offer] = {}
    failures: list[str] = []
    for page in _pages(project, settings):
        try:
            found = _page(web, page) | found
        except (OSError, ValueError, KeyError) as error:
            failures.append(str(error))
    if failures and not any(name.startswith(project) for name in found):
        raise BuildError(f"the package index cannot be reached ({failures[-1]}); connect to the network.")
    return found


def locate(artefact: Artefact, settings: PipSettings, web: Web) -> str:
    """Return the address of an artefact.

    Raises:
        BuildError: no configured place could be reached, or none of them has the file.
    """
    failures: list[str] = []
    for page in _pages(artefact.project, settings):
        try:
            found = _page(web, page).get(artefact.file)
        except (OSError, ValueError, KeyError) as error:
            failures.append(str(error))
            continue
        if found:
            return found.url
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
