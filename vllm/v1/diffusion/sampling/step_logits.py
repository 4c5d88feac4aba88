# SPDX-License-Identifier: Apache-2.0
"""A step's logits, of which some rows are changed.

Changed logits are float32, several gigabytes for a large batch. They are therefore made for some rows at a
time, and each step works on them part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from vllm.utils.torch_utils import async_tensor_h2d

MOST_BYTES = 1 << 28
"""Bytes of float32 logits in one part. Filters make a few copies of it."""


class Part(NamedTuple):
    """Some rows of a step's logits, changed.

    Attributes:
        rows_np: The rows, int64 ``[M]``, ascending, on the host.
        rows: The same on the device.
        logits: float32 ``[M, V]``.
    """

    rows_np: np.ndarray
    rows: torch.Tensor
    logits: torch.Tensor


class StepLogits:
    """A step's logits: the model's, and what its requests' parameters make of some rows.

    Attributes:
        raw: The model's, ``[N, V]``, in its dtype.
        rows_np: Rows that are changed, int64, ascending, on the host; None for none.
    """

    def __init__(
        self,
        raw: torch.Tensor,
        rows_np: np.ndarray | None = None,
        change: Callable[[np.ndarray], Part] | None = None,
        keep: bool = False,
        cap: float | None = None,
    ) -> None:
        """Makes it.

        Args:
            raw: See above.
            rows_np: See above.
            change: Makes changed rows, by what the canvases hold when it is called.
            keep: Whether changed rows are read after the canvases were written.
            cap: What the model's logits are soft-capped at; None where they are as they should be.
        """
        self.raw = raw
        self._cap = cap
        self.rows_np = rows_np
        self._change = change
        parts = [] if rows_np is None else list(in_parts(rows_np, raw.shape[1]))
        self._kept = [self._made(part) for part in parts] if keep or len(parts) == 1 else None

    def changed(self) -> Iterator[Part]:
        """The changed rows, part by part."""
        if self._kept is not None:
            yield from self._kept
        elif self.rows_np is not None:
            yield from (self._made(part) for part in in_parts(self.rows_np, self.raw.shape[1]))

    def of(self, rows_np: np.ndarray) -> torch.Tensor:
        """A copy of some rows, changed where their requests ask for it, float32 ``[M, V]``.

        Args:
            rows_np: The rows, ascending; no more than ``in_parts`` gives at a time.
        """
        rows = async_tensor_h2d(rows_np, dtype=torch.int64, device=self.raw.device)
        values = self.plain(rows)
        if self.rows_np is None:
            return values
        parts = self._kept
        if parts is None:
            some = np.intersect1d(rows_np, self.rows_np, assume_unique=True)
            parts = [self._made(some)] if len(some) else []
        for part in parts:
            _, *places = np.intersect1d(rows_np, part.rows_np, return_indices=True)
            if len(places[0]):
                to, source = (async_tensor_h2d(p, dtype=torch.int64, device=rows.device) for p in places)
                values[to] = part.logits[source]
        return values

    def plain(self, rows: torch.Tensor) -> torch.Tensor:
        """A copy of some rows as the model means them, float32 ``[M, V]``.

        Args:
            rows: The rows, int64 ``[M]``; no more than ``in_parts`` gives at a time.
        """
        return soft_capped(self.raw[rows], self._cap)

    def best_other(self, rows: torch.Tensor, excluded: torch.Tensor) -> torch.Tensor:
        """The best token of rows that the device has chosen, some ids excluded.

        Args:
            rows: The rows, int64 ``[n]``.
            excluded: Ids that do not count, -1 for none, int64 ``[n, m]``.

        Returns:
            int64 ``[n]``.
        """
        most = max(1, MOST_BYTES // (4 * self.raw.shape[1]))
        parts = zip(rows.split(most), excluded.split(most), strict=True)  # type: ignore[no-untyped-call]
        return torch.cat([self._best(*part) for part in parts])

    def at(self, rows: torch.Tensor) -> torch.Tensor:
        """A copy of rows that the device has chosen, changed where their requests ask for it.

        Args:
            rows: The rows, int64 ``[n]``; no more than ``in_parts`` gives at a time.

        Returns:
            float32 ``[n, V]``.
        """
        values = self.plain(rows)
        self._overlay(values, rows)
        return values

    def _overlay(self, values: torch.Tensor, rows: torch.Tensor) -> None:
        """Puts what is changed of some rows over the model's, in place."""
        for part in self.changed():
            place = torch.full((len(self.raw),), -1, dtype=torch.int64, device=rows.device)
            place[part.rows] = torch.arange(len(part.rows), device=rows.device)
            place = place[rows]
            values.copy_(torch.where(place[:, None] < 0, values, part.logits[place.clamp(min=0)]))

    def _best(self, rows: torch.Tensor, excluded: torch.Tensor) -> torch.Tensor:
        # One column more takes what stands for no id.
        vocabulary = self.raw.shape[1]
        values = torch.empty(len(rows), vocabulary + 1, dtype=torch.float32, device=rows.device)
        own = values[:, :vocabulary]
        own.copy_(self.raw[rows])
        self._overlay(own, rows)
        values.scatter_(1, torch.where(excluded < 0, vocabulary, excluded), -torch.inf)
        return own.argmax(dim=1)

    def _made(self, rows_np: np.ndarray) -> Part:
        assert self._change is not None
        return self._change(rows_np)


def soft_capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """A float32 copy of logits, soft-capped: ``cap tanh(logits / cap)``; banned ids stay banned."""
    wide = logits.to(torch.float32, copy=True)
    if cap is None:
        return wide
    banned = wide == -torch.inf
    return wide.div_(cap).tanh_().mul_(cap).masked_fill_(banned, -torch.inf)


def in_parts(rows_np: np.ndarray, vocab_size: int) -> Iterator[np.ndarray]:
    """Cuts rows of logits so that a float32 copy of each part has a bounded size."""
    most = max(1, MOST_BYTES // (4 * vocab_size))
    for first in range(0, len(rows_np), most):
        yield rows_np[first : first + most]
