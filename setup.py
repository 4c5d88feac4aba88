"""Builds the wheel without pip: ``python setup.py bdist_wheel`` puts it into ``dist/``.

pip does not come here; it calls ``build_support.backend``, as ``pyproject.toml`` says. The running
environment must have what ``[requirements] build`` in ``upstream.toml`` lists.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from build_support import backend

_COMMANDS: dict[str, Callable[[str], str]] = {
    "bdist_wheel": backend.build_wheel,
    "sdist": backend.build_sdist,
}


def main(arguments: list[str]) -> str:
    """Run one command and return the name of the file it wrote into ``dist/``."""
    if len(arguments) != 1 or arguments[0] not in _COMMANDS:
        sys.exit("error: use pip install . (or pip install -e .), or setup.py bdist_wheel | sdist.")
    folder = Path(__file__).resolve().parent / "dist"
    folder.mkdir(exist_ok=True)
    return _COMMANDS[arguments[0]](str(folder))


if __name__ == "__main__":
    print(main(sys.argv[1:]))
