"""HTTP with what pip's configuration asks for: CA bundle, trusted hosts, proxy, credentials."""

from __future__ import annotations

import base64
import netrc
import ssl
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import IO


@dataclass(frozen=True)
class Answer:
    """A page: its final address, content type and body."""

    url: str
    kind: str
    body: bytes


def _authorisation(parts: urllib.parse.SplitResult) -> str | None:
    """Return a Basic header from the address or from the user's netrc file."""
    user, password = parts.username, parts.password
    if user is None:
        try:
            known = netrc.netrc().authenticators(parts.hostname or "")
        except (OSError, netrc.NetrcParseError):
            known = None
        if known is None:
            return None
        user, _, password = known
    pair = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


class Web:
    """Opens addresses; made once a build.

    Args:
        cert: path of a CA bundle, or None for the system's.
        trusted: hosts (or host:port) whose certificates are not checked.
        proxy: proxy address, or None to follow the environment.
        timeout: seconds to wait for a connection or for bytes.
    """

    def __init__(
        self,
        cert: str | None = None,
        trusted: tuple[str, ...] = (),
        proxy: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        self._trusted = trusted
        self._timeout = timeout
        checked = ssl.create_default_context(cafile=cert)
        unchecked = ssl.create_default_context()
        unchecked.check_hostname = False
        unchecked.verify_mode = ssl.CERT_NONE
        proxies = [urllib.request.ProxyHandler({"http": proxy, "https": proxy})] if proxy else []
        self._checked, self._unchecked = (
            urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), *proxies)
            for context in (checked, unchecked)
        )

    def open(self, address: str, headers: dict[str, str]) -> HTTPResponse | IO[bytes]:
        """Open an address (``http``, ``https`` or ``file``).

        Raises:
            OSError: it cannot be opened (``urllib.error.HTTPError`` has the status).
        """
        parts = urllib.parse.urlsplit(address)
        wanted = dict(headers)
        if parts.scheme in ("http", "https"):
            authorisation = _authorisation(parts)
            if authorisation:
                wanted["Authorization"] = authorisation
            bare = parts.netloc.rpartition("@")[2]
            address = urllib.parse.urlunsplit(parts._replace(netloc=bare))
        known = parts.hostname in self._trusted or parts.netloc in self._trusted
        opener = self._unchecked if known else self._checked
        request = urllib.request.Request(address, headers=wanted)
        opened: HTTPResponse = opener.open(request, timeout=self._timeout)
        return opened

    def get(self, address: str, headers: dict[str, str]) -> Answer | None:
        """Return a page, or None where the server says that there is none.

        Raises:
            OSError: the server cannot be reached or refuses.
        """
        try:
            with self.open(address, headers) as response:
                assert isinstance(response, HTTPResponse)
                kind = response.headers.get("Content-Type", "")
                return Answer(response.geturl(), kind, response.read())
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                return None
            raise
