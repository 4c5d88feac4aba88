"""What the overlay must change for the release after the pin: ``patches/next/overlay/*.diff``.

These are diffs against this repository's own files, for the day that the release becomes the pin. The
overlay goes on changing until then, so they may shift by some lines; their context must be found.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from build_support.errors import BuildError


def diffs(home: Path) -> list[Path]:
    """Return the diffs that go with the series in ``home``, in order of their names."""
    return sorted((home / "overlay").glob("*.diff"))


def adapt_overlay(home: Path, tree: Path) -> int:
    """Apply them to the copy of the overlay in ``tree``; return how many there are.

    Raises:
        BuildError: one does not apply any more.
    """
    found = diffs(home)
    # Within another repository's folder, git would look for the files from its root.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.resolve().parent)}
    for path in found:
        done = subprocess.run(
            ["git", "apply", str(path.resolve())],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BuildError(
                f"patches/next/overlay/{path.name} no longer applies to the overlay "
                f"({done.stderr.strip().splitlines()[0]}); make it again as docs/upgrading.md says."
            )
    return len(found)
