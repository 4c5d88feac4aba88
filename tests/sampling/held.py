# SPDX-License-Identifier: Apache-2.0
"""What objects of a worker hold, as data: to compare a used one with a fresh one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor

OF_A_STEP = {"failed", "first", "_rewritable", "_groups", "_anchored", "_held", "_noted", "_requests"}
"""Attributes that the next step sets anew, whatever they hold, and constants that grow."""

PLAIN = (bool, int, float, str, bytes, type(None))


def held_by(owner: Any, path: str = "") -> dict[str, Any]:
    """Everything that an object of the diffusion package and its parts hold, by dotted path.

    A table's scratch row, behind those of the slots, is left out; so are upstream's objects.
    """
    found: dict[str, Any] = {}
    _collect(owner, path or type(owner).__name__, found, set())
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where two such records differ, and how."""
    paths = one.keys() | other.keys()
    return {p: (one.get(p), other.get(p)) for p in sorted(paths) if one.get(p) != other.get(p)}


def _collect(value: Any, path: str, found: dict[str, Any], seen: set[int]) -> None:
    if isinstance(value, torch.Tensor | np.ndarray):
        found[path] = value.tolist()
    elif isinstance(value, UvaBackedTensor):
        found[path] = (value.np.tolist(), value.gpu.tolist())
    elif isinstance(value, PLAIN):
        found[path] = value
    elif isinstance(value, dict):
        found[path] = sorted(map(_name, value))
        for key, one in value.items():
            _collect(one, f"{path}[{_name(key)}]", found, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        found[path] = sorted(map(_name, value))
    elif type(value).__module__.startswith("vllm.v1.diffusion.") and id(value) not in seen:
        seen.add(id(value))
        for name, one in _attributes(value):
            if name not in OF_A_STEP and name != "_tables":
                _collect(one, f"{path}.{name}", found, seen)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    # Data classes with slots have no dictionary; the grid of a request that has not ended is one.
    if is_dataclass(value):
        return ((one.name, getattr(value, one.name)) for one in fields(value))
    return iter(vars(value).items())


def _name(key: Any) -> str:
    return repr(key) if isinstance(key, PLAIN) else type(key).__name__
