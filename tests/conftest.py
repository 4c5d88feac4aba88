"""Order of the suites: what upstream must have comes first, since it explains the others' failures."""

from __future__ import annotations

from pathlib import Path

import pytest

_FIRST = "upstream_contract"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the contract with upstream before every other suite; their own orders stay."""
    items.sort(key=lambda item: _FIRST not in Path(item.path).parts)
