# SPDX-License-Identifier: Apache-2.0
"""A vocabulary for grammars, and the backends that compile them."""

from __future__ import annotations

VOCABULARY, END, MASK = 300, 290, 291
BACKENDS = ["xgrammar", "guidance", "outlines"]
