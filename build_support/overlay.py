"""The overlay: the repository's ``vllm/**``, laid on the patched upstream tree."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from build_support.errors import BuildError

_NOT_OURS = ("__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".ipynb_checkpoints")


def overlay_files(root: Path) -> list[str]:
    """Return the overlay's files as sorted POSIX paths that begin with ``vllm/``.

    Caches, compiled objects and editors' leftovers are not part of it.
    """
    files: list[str] = []
    for folder, folders, names in os.walk(root / "vllm"):
        folders[:] = sorted(name for name in folders if name not in _NOT_OURS)
        for name in names:
            if name.endswith((".pyc", ".so", ".swp", "~")) or name == ".DS_Store":
                continue
            files.append((Path(folder) / name).relative_to(root).as_posix())
    return sorted(files)


def refuse_collisions(root: Path, tree: Path) -> list[str]:
    """Return the overlay's files, having checked that upstream has none of them.

    Raises:
        BuildError: an overlay path exists upstream (as a file, or as a folder in its way).
    """
    files = overlay_files(root)
    for name in files:
        if (tree / name).exists():
            raise BuildError(
                f"the overlay has {name}, which upstream has too; rename ours, or open a hook in "
                "upstream's file with a patch."
            )
        for parent in list((tree / name).relative_to(tree).parents)[:-1]:
            if (tree / parent).is_file():
                raise BuildError(f"the overlay has {name}, but {parent} is a file upstream; rename ours.")
    return files


def copy_overlay(root: Path, tree: Path) -> list[str]:
    """Copy the overlay into ``tree``; return its files.

    Raises:
        BuildError: it collides with upstream.
    """
    files = refuse_collisions(root, tree)
    for name in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, tree / name)
    return files
