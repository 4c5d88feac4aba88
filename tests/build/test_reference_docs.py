"""The tool that writes the pages of ``docs/`` which are made from the code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from build_support import paths


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "reference_docs", paths.ROOT / "tools" / "reference_docs.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_DOCS", tmp_path)
    return module


def run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["reference_docs.py", *arguments])
    return int(tool.main())


def test_pages_are_written_and_checked(
    tool: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(tool, monkeypatch, "--check") == 1
    assert "run make docs" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert run(tool, monkeypatch) == 0
    assert {path.name for path in tmp_path.iterdir()} == set(tool.PAGES)
    assert run(tool, monkeypatch, "--check") == 0
    page = tmp_path / "parameters.md"
    page.write_text(page.read_text().replace("`diffusion_steps`", "`diffusion_stepz`", 1))
    capsys.readouterr()
    assert run(tool, monkeypatch, "--check") == 1
    assert capsys.readouterr().out == "error: docs/parameters.md is not current; run make docs.\n"


def test_every_parameter_has_a_row(tool: ModuleType) -> None:
    from vllm.v1.diffusion.request.params import parameters

    page = tool.parameters_page()
    known = parameters()
    assert {"steps", "edit_threshold"} <= known.keys()
    for name in known:
        assert f"| `diffusion_{name}` |" in page


def test_a_cell_cannot_break_its_table(tool: ModuleType) -> None:
    assert tool.table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |"
