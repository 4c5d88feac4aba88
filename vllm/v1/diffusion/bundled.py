# SPDX-License-Identifier: Apache-2.0
"""The small checkpoints that come with the package."""

from pathlib import Path

_ASSETS = Path(__file__).parent / "assets"


def bundled_path(family: str = "sdar") -> str:
    """The folder of a bundled checkpoint, for ``LLM(model=...)``.

    Args:
        family: Family of the checkpoint; ``models/`` says how it was trained.

    Raises:
        ValueError: No checkpoint of that family is bundled.
    """
    folder = _ASSETS / family
    if not (folder / "config.json").is_file():
        known = sorted(p.parent.name for p in _ASSETS.glob("*/config.json"))
        raise ValueError(f"family={family!r} has no bundled checkpoint. Known: {', '.join(known)}.")
    return str(folder)


def is_bundled(model: str) -> bool:
    """Whether a model's path is a bundled checkpoint's."""
    return Path(model).parent == _ASSETS
