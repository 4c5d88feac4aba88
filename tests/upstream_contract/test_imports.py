"""Every name that the overlay imports from upstream is there."""

from __future__ import annotations

import importlib

import pytest

from tests.upstream_contract.overlay_source import imports


@pytest.mark.parametrize(("module", "name"), sorted(imports()))
def test_upstream_has(module: str, name: str) -> None:
    found = importlib.import_module(module)
    if name and not hasattr(found, name):
        importlib.import_module(f"{module}.{name}")  # a submodule
