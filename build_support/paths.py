"""Where things lie, in the source folder and in the user's cache."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cache_dir() -> Path:
    """Return the folder that keeps downloaded artefacts between builds.

    ``VLLM_UPSTREAM_CACHE`` names it; the default is ``vllm-diffusion`` in the user's cache folder.
    """
    named = os.environ.get("VLLM_UPSTREAM_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vllm-diffusion"


def upstream_dir() -> Path | None:
    """Return the folder of artefacts for an air-gapped build (``VLLM_UPSTREAM_DIR``), if set."""
    named = os.environ.get("VLLM_UPSTREAM_DIR")
    return Path(named).expanduser() if named else None
