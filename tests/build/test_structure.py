"""``docs/structure.md`` knows every part of the overlay and every suite."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from build_support import paths
from build_support.overlay import overlay_files

TEXT = (paths.ROOT / "docs" / "structure.md").read_text("utf-8") if (paths.ROOT / "docs").is_dir() else ""
NAMED = set(re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`]+)`", TEXT))))
WHOLE = ("policies", "assets", "models", "configs")  # folders that are described as one


def modules() -> list[str]:
    found = []
    for name in overlay_files(paths.ROOT):
        path = Path(name)
        if path.suffix == ".py" and path.stem != "__init__" and not set(WHOLE) & set(path.parts):
            found.append(name)
    return found


@pytest.mark.parametrize("name", modules())
def test_a_module_is_on_the_map(name: str) -> None:
    assert Path(name).stem in NAMED, f"{name} is not in docs/structure.md"


def test_folders_are_on_the_map() -> None:
    folders = {path.name for path in (paths.ROOT / "tests").iterdir() if path.is_dir()}
    expected = {*WHOLE, *folders} - {"__pycache__"}
    missing = sorted(name for name in expected if name not in TEXT)
    assert not missing, f"docs/structure.md does not mention {missing}"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (paths.ROOT / "docs" / target).is_file(), target
