"""Puts the tree together: pinned upstream, patched, with compiled objects and our version."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from build_support import series
from build_support.errors import BuildError
from build_support.fetch import fetch_all
from build_support.metadata import version_module
from build_support.overlay import refuse_collisions
from build_support.pin import Pin
from build_support.progress import say
from build_support.upstream import unpack_objects, unpack_source

_LAYOUT = "1"  # raise when this module changes what a kept tree looks like


def assemble(root: Path, pin: Pin, device: str, tree: Path) -> None:
    """Make ``tree``: upstream's ``vllm/**`` patched, plus objects and ``_version.py``; no overlay.

    Raises:
        BuildError: an artefact, a patch or the overlay does not fit; ``tree`` is then of no use.
    """
    patches = series.read_series(root / "patches")
    source, objects = fetch_all(pin, device)
    say(f"unpacking {source.name}")
    unpack_source(source, tree)
    refuse_collisions(root, tree)
    series.write_files(tree, series.apply_series(patches, series.tree_reader(tree)))
    say(f"applied {len(patches)} patches; unpacking {objects.name}")
    unpack_objects(objects, device, tree)
    refuse_collisions(root, tree)  # the objects' wheel may bring files of its own
    (tree / "vllm" / "_version.py").write_text(version_module(pin, device), encoding="utf-8")


def tree_key(root: Path, pin: Pin, device: str) -> str:
    """Return a digest of what the assembled tree is made from."""
    digest = hashlib.sha256(f"{_LAYOUT}\0{pin.fork_version(device)}\0".encode())
    for artefact in pin.artefacts(device):
        digest.update(artefact.sha256.encode())
    for patch in series.read_series(root / "patches"):
        digest.update(f"{patch.name}\0{patch.diff}\0".encode())
    return digest.hexdigest()[:12]


def kept_tree(root: Path, pin: Pin, device: str) -> Path:
    """Return the assembled tree that editable installs use, making it if its parts changed."""
    home = root / "build" / "editable"
    tree = home / f"{device}-{tree_key(root, pin, device)}"
    if tree.is_dir():
        say(f"using the assembled tree build/editable/{tree.name}")
        return tree
    home.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix="part-", dir=home))
    try:
        assemble(root, pin, device, part)
        part.chmod(0o755)
        try:
            part.rename(tree)
        except OSError as error:
            if not tree.is_dir():
                raise BuildError(f"{tree} cannot be made: {error}.") from error
            say(f"using the tree that another build made meanwhile, build/editable/{tree.name}")
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for old in home.glob(f"{device}-*"):
        if old != tree:
            shutil.rmtree(old)
    return tree


def link_overlay(root: Path, tree: Path) -> None:
    """Link the overlay into a kept tree, so that edits are live.

    A folder that is all ours is one link, so that files made in it later are live too; a single
    file in one of upstream's folders is a link of its own, made anew at each install.
    """
    _unlink_overlay(tree / "vllm")
    for name in refuse_collisions(root, tree):
        if (tree / name).exists():
            continue  # within a folder that is linked already
        parents = [Path(name), *list(Path(name).parents)[:-1]]
        topmost = [part for part in parents if not (tree / part).exists()][-1]
        (tree / topmost).symlink_to(root / topmost, target_is_directory=topmost != Path(name))


def _unlink_overlay(folder: Path) -> None:
    """Remove every link under ``folder``; an assembled tree has none of its own."""
    for here, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(here) / name
            if path.is_symlink():
                path.unlink()
