# SPDX-License-Identifier: Apache-2.0
"""The picture of the live page: it is there, small, and as large as the tool makes it."""

from __future__ import annotations

import re
import struct

from build_support import paths

PICTURE = paths.ROOT / "docs" / "page.png"


def test_the_picture_is_small() -> None:
    data = PICTURE.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    # The tool itself needs a browser's package.
    tool = (paths.ROOT / "tools" / "page_picture.py").read_text("utf-8")
    size = re.search(r"^SIZE = \((\d+), (\d+)\)", tool, re.M)
    assert size is not None
    assert struct.unpack(">II", data[16:24]) == (int(size[1]), int(size[2]))
    assert len(data) < 100_000
    assert "docs/page.png" in (paths.ROOT / "README.md").read_text("utf-8")
