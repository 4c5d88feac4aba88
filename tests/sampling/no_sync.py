# SPDX-License-Identifier: Apache-2.0
"""Finds, on a CPU, what on a GPU would wait for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

READS = {
    "Tensor.item", "Tensor.tolist", "Tensor.numpy", "Tensor.cpu", "Tensor.__bool__", "Tensor.__int__",
    "Tensor.__float__", "Tensor.__index__", "Tensor.__contains__", "Tensor.nonzero", "Tensor.masked_select",
    "torch.nonzero", "torch.masked_select", "torch.unique", "torch.unique_consecutive", "torch.equal",
    "torch.bincount", "torch.argwhere",
}  # fmt: skip
"""What brings values to the host, or makes a shape depend on them."""
COPIES = {"torch.tensor", "torch.as_tensor", "torch.asarray", "torch.from_numpy", "Tensor.new_tensor"}
"""What makes a tensor of data on the host: to a device, a copy that is waited for."""
DEPENDENT = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "bincount"}
"""The same beneath Python's functions."""


class WouldWait(AssertionError):
    """An operation that would wait for the device."""


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (resolve_name(func) or "").replace("torch.Tensor.", "Tensor.")
        if name in READS | COPIES:
            raise WouldWait(name)
        if name in ("Tensor.__getitem__", "Tensor.__setitem__"):
            for index in args[1] if isinstance(args[1], tuple) else (args[1],):
                if isinstance(index, list | np.ndarray):
                    raise WouldWait(f"{name} with an index on the host, {index!r}")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in DEPENDENT:
            raise WouldWait(name)
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
            raise WouldWait(f"{name} with a mask")
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            raise WouldWait("repeat_interleave without output_size")
        return func(*args, **kwargs)


@contextmanager
def no_waiting(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> Iterator[None]:
    """Raises WouldWait for what would; copies by ``async_tensor_h2d`` are staged, and pass.

    Args:
        monkeypatch: Pytest's.
        *modules: Those that call ``async_tensor_h2d``.
    """
    from vllm.utils.torch_utils import async_tensor_h2d

    def staged(*args: Any, **kwargs: Any) -> torch.Tensor:
        with torch._C.DisableTorchFunction():
            return async_tensor_h2d(*args, **kwargs)

    with monkeypatch.context() as patch:
        for module in modules:
            if hasattr(module, "async_tensor_h2d"):
                patch.setattr(module, "async_tensor_h2d", staged)
        with _Functions(), _Operators():
            yield
