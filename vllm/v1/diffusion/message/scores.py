# SPDX-License-Identifier: Apache-2.0
"""Log probabilities of a prompt's tokens, on their way between front end, engine core and workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vllm.v1.outputs import LogprobsLists, LogprobsTensors


@dataclass(frozen=True)
class Targets:
    """Tokens that are given, and whose log probabilities are asked for.

    Attributes:
        ids: The tokens, which follow the request's prompt.
        estimator: The order in which positions are unmasked; see ``request/likelihood.py``.
        block_length: Tokens per block.
        hidden: Which of them are masked, where the others are seen: their indexes, ascending. None for all.
    """

    ids: tuple[int, ...]
    estimator: str
    block_length: int
    hidden: tuple[int, ...] | None = None


def joined_scores(parts: Sequence[LogprobsLists]) -> LogprobsTensors:
    """Blocks' log probabilities as upstream's front end reads those of a prompt.

    Args:
        parts: Of each block, in order; at least one.
    """
    ids, values, ranks = (torch.from_numpy(np.concatenate([part[i] for part in parts])) for i in range(3))
    return LogprobsTensors(ids, values, ranks)
