"""Reads the overlay's source: what it imports from upstream, and which attributes it uses."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from build_support import paths
from build_support.overlay import overlay_files


@functools.cache
def sources() -> dict[str, ast.Module]:
    """Return overlay module -> its syntax tree, as installed."""
    found: dict[str, ast.Module] = {}
    home = Path(importlib.import_module("vllm.version").__file__ or "").parent.parent
    for name in overlay_files(paths.ROOT):
        if name.endswith(".py"):
            module = ".".join(Path(name).with_suffix("").parts).removesuffix(".__init__")
            found[module] = ast.parse((home / name).read_text("utf-8"))
    return found


def imports() -> set[tuple[str, str]]:
    """Return (module, name) of everything that the overlay imports from upstream, at any place."""
    found: set[tuple[str, str]] = set()
    for tree in sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                assert node.module is not None
                found |= {(node.module, alias.name) for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {(a.name, "") for a in node.names if a.name.split(".")[0] == "vllm"}
    return {(module, name) for module, name in found if not is_ours(module, name)}


def is_ours(module: str, name: str = "") -> bool:
    """Whether a module, or the module that ``name`` is in a package, is the overlay's."""
    return module in sources() or f"{module}.{name}" in sources()


def load(dotted: str) -> Any:
    """Return what ``package.module:Name`` names."""
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


def classes() -> Iterator[tuple[type, type]]:
    """Yield (our class, upstream's base) of each overlay class that extends one of upstream's."""
    for module, tree in sources().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.bases:
                ours = getattr(importlib.import_module(module), node.name)
                for base in ours.__mro__[1:]:
                    if base.__module__.startswith("vllm.") and not is_ours(base.__module__):
                        yield ours, base
                        break


def uses(name: str, below: str = "vllm") -> dict[str, set[str]]:
    """Return attribute -> our modules that use it on what they call ``name``.

    Args:
        name: of a variable or an attribute.
        below: only modules whose name starts with this.
    """
    found: dict[str, set[str]] = {}
    for module, tree in sources().items():
        if not module.startswith(below):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _called(node.value) == name:
                found.setdefault(node.attr, set()).add(module)
    return found


def _called(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def calls(name: str) -> list[tuple[str, int, tuple[str, ...]]]:
    """Return (place, number of positional arguments, keywords) of our calls of what is named so."""
    return [
        (f"{module}:{node.lineno}", len(node.args), tuple(k.arg for k in node.keywords if k.arg))
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _called(node.func) == name
    ]


def class_tree(cls: type) -> ast.ClassDef:
    """Return the syntax tree of a class."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(node, ast.ClassDef)
    return node


def attributes(cls: type) -> set[str]:
    """Return what instances of a class have: methods, fields, and what its methods assign to self."""
    found = set(dir(cls))
    for base in cls.__mro__:
        found |= set(getattr(base, "__annotations__", {}))
        fields = getattr(base, "__struct_fields__", ())
        found |= set(fields) if isinstance(fields, tuple) else set()
        if not base.__module__.startswith("vllm"):
            continue
        for node in ast.walk(class_tree(base)):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
                continue
            if _called(node.value) == "self":
                found.add(node.attr)
    return found


def self_uses(cls: type) -> set[str]:
    """Return the attributes that a class takes from ``self`` or ``super()``."""
    found: set[str] = set()
    for node in ast.walk(class_tree(cls)):
        if isinstance(node, ast.Attribute):
            upper = isinstance(node.value, ast.Call) and _called(node.value.func) == "super"
            if upper or _called(node.value) == "self":
                found.add(node.attr)
    return found
