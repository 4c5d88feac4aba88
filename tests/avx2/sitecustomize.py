# SPDX-License-Identifier: Apache-2.0
"""Imported by every Python of ``make test-avx2``: torch says that this CPU has AVX2 and no more.

Libraries read the limits of their instruction sets from the environment. What upstream asks torch
(``torch.cpu._is_avx512_supported`` and others) comes from the processor, so those answers are replaced when
``torch.cpu`` is imported. Upstream then loads ``_C_AVX2`` and chooses layers and attention as on such a CPU.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_BEYOND = ("avx512", "amx", "vnni")


class _Limit(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torch.cpu":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec and spec.loader
        execute = spec.loader.exec_module

        def limited(module: ModuleType) -> None:
            execute(module)
            for name in vars(module):
                if name.startswith("_is_") and any(word in name for word in _BEYOND):
                    setattr(module, name, lambda: False)

        spec.loader.exec_module = limited  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Limit())
