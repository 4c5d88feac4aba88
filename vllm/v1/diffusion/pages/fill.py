# SPDX-License-Identifier: Apache-2.0
"""Makes one file of a page's parts, which needs nothing else and asks no other host."""

from __future__ import annotations

import json
from importlib.resources import files

_SHARED = {"@STYLE@": "style.css", "@PLAYER@": "player.html", "@SCRIPT@": "script.js"}
_DATA = "@DATA@"


def filled(package: str, name: str, data: object) -> str:
    """A page with its data.

    Args:
        package: Where its template is.
        name: The template's file.
        data: What the page's script reads, as JSON.
    """
    page = files(package).joinpath(name).read_text("utf-8")
    for mark, part in _SHARED.items():
        page = page.replace(mark, files(__package__).joinpath(part).read_text("utf-8"))
    before, after = page.split(_DATA)
    # No text may end the script element that holds the data, or open a comment in it.
    return before + json.dumps(data, separators=(",", ":")).replace("<", "\\u003c") + after
