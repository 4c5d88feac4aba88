"""``docs/structure.md`` knows every part of the overlay and every suite; its imports go down only."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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


def test_no_test_module_is_a_library() -> None:
    """What tests share is in modules that are not collected."""
    wrong = [
        f"{path.relative_to(paths.ROOT)}: {line}"
        for path in (paths.ROOT / "tests").rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if re.match(r"\s*(from|import) tests\.([\w.]*\.)?test_\w+", line)
    ]
    assert not wrong, wrong


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (paths.ROOT / "docs" / target).is_file(), target


DIFFUSION = paths.ROOT / "vllm" / "v1" / "diffusion"
LEVELS = (
    ("kernels", "message", "modes", "pages", "families", "bundled", "demo"),
    ("policies", "layers", "checkpoint"),
    ("config",),
    ("request",),
    ("canvas", "core", "frontend", "cli"),
    ("grammar",),
    ("sampling",),
    ("worker",),
    ("loops",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
WORKER_SIDE = {"canvas", "grammar", "sampling", "worker"}
DOORS = {"__init__", "plugins"}  # They re-export, and nothing below imports them.
FOR_POLICIES = tuple(f"vllm.v1.diffusion.kernels.{name}." for name in ("rules", "noise", "timetable"))
MOST_MODULES = 14


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(DIFFUSION).parts[0].removesuffix(".py")


def forbidden(room: str, target: str) -> str | None:
    """Why a module in ``room`` may not import ``target``; None if it may."""
    if target.split(".")[0] == "torch" and room in ("core", "request", "modes"):
        return "needs no torch"
    if not target.startswith("vllm.v1.diffusion."):
        return None
    other = target.split(".")[3]
    if other in DOORS:
        return "is below the door"
    if other == room or other not in LEVEL:
        return None
    if LEVEL[other] >= LEVEL[room]:
        return "is not above it"
    if {room, other} & {"core"} and {room, other} & WORKER_SIDE:
        return "is on the other side of the engine"
    if other == "worker" and room != "loops":
        return "is no loop"
    if room == "layers" and other != "kernels":
        return "may import kernels only"
    if room == "policies" and not target.startswith(FOR_POLICIES):
        return "may import kernels.rules, kernels.noise and kernels.timetable only"
    return None


def test_every_room_has_a_level() -> None:
    rooms = {room_of(path) for path in DIFFUSION.rglob("*.py")} - DOORS
    assert rooms == set(LEVEL)


def test_imports_go_down_only() -> None:
    wrong = [
        f"{path.relative_to(paths.ROOT)} imports {target}: {room_of(path)} {why}"
        for path in sorted(DIFFUSION.rglob("*.py"))
        if room_of(path) not in DOORS
        for target in imports(path)
        if (why := forbidden(room_of(path), target))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("room", "target"),
    [
        ("core", "vllm.v1.diffusion.sampling.sampler.DenoisingSampler"),
        ("canvas", "vllm.v1.diffusion.core.plan.RequestPlan"),
        ("kernels", "vllm.v1.diffusion.families.FAMILIES"),
        ("policies", "vllm.v1.diffusion.kernels.row_stats.RowStats"),
        ("request", "torch"),
        ("modes", "vllm.v1.diffusion.core.causal.BlockPlanner"),
        ("loops", "vllm.v1.diffusion.plugins.GenerationLoop"),
    ],
)
def test_the_rules_refuse_what_they_should(room: str, target: str) -> None:
    assert forbidden(room, target)


def test_classes_of_objects_are_changed_in_one_place() -> None:
    """And in the guard, whose objects are a plug-in's."""
    places = {"vllm/v1/diffusion/layers/classes.py", "vllm/v1/generation_loop/guarded_classes.py"}
    found = {
        name
        for name in overlay_files(paths.ROOT)
        if name.endswith(".py") and re.search(r"\.__class__ = ", (paths.ROOT / name).read_text("utf-8"))
    }
    assert found == places


def test_no_folder_grows_without_end() -> None:
    for folder in (DIFFUSION, *(path for path in DIFFUSION.rglob("*") if path.is_dir())):
        modules = [path for path in folder.glob("*.py") if path.stem != "__init__"]
        assert len(modules) <= MOST_MODULES, folder


def test_the_loop_package_has_no_circle() -> None:
    folder = paths.ROOT / "vllm" / "v1" / "generation_loop"
    graph = {
        path.stem: {
            target.split(".")[3]
            for target in imports(path)
            if target.startswith("vllm.v1.generation_loop.") and target.count(".") > 3
        }
        - {path.stem}
        for path in folder.glob("*.py")
        if path.stem != "__init__"
    }
    reached: dict[str, set[str]] = {}
    for name in graph:
        found: set[str] = set()
        rest = list(graph[name])
        while rest:
            other = rest.pop()
            if other not in found:
                found.add(other)
                rest.extend(graph.get(other, ()))
        reached[name] = found
    assert not [name for name, found in reached.items() if name in found]


def test_the_design_lists_every_patch_of_the_series() -> None:
    text = (paths.ROOT / "docs" / "design.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[\w`, -]+`) \|", text, re.M)
    listed = {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}
    lines = (paths.ROOT / "patches" / "series").read_text("utf-8").splitlines()
    series = {line.removesuffix(".patch") for line in lines if line and not line.startswith("#")}
    assert series <= listed, f"docs/design.md does not list {sorted(series - listed)}"
