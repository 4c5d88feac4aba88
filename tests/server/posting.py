# SPDX-License-Identifier: Apache-2.0
"""Bodies that are posted as they are."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from tests.server.conftest import MODEL, Server


def post(server: Server, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and body of an answer; what a client library would add or leave out stays as it is."""
    request = urllib.request.Request(
        server.url + path,
        json.dumps({"model": MODEL, **body}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
