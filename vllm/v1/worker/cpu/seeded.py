# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Diffusion project
"""Per-request seeds with Model Runner V1 on a CPU.

The runner samples a token for every row, also for a prompt of which only a chunk was computed, and
throws that token away. Upstream then sets the request's generator back by an offset, which a CPU
generator does not have: the engine died of it. Here nothing is drawn from the generator of such a row,
so that a seeded output does not depend on how its prompt was split.
"""

from typing import Any

import numpy as np
import torch

__all__ = ["SeededSampling"]


class SeededSampling:
    """Mixin of upstream's ``CPUModelRunner``, before ``GPUModelRunner`` in its bases."""

    input_batch: Any
    discard_request_mask: Any

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        """Samples without the generators of the rows whose token is thrown away."""
        generators: dict[int, torch.Generator] = self.input_batch.generators
        thrown_away = self.discard_request_mask.np[: self.input_batch.num_reqs]
        rows = np.flatnonzero(thrown_away).tolist() if generators else []
        self._unused = {row: generators.pop(row) for row in rows if row in generators}
        return super()._sample(*args, **kwargs)  # type: ignore[misc]

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        """Books the step, then gives the rows their generators back."""
        output = super()._bookkeeping_sync(*args, **kwargs)  # type: ignore[misc]
        self.input_batch.generators.update(self._unused)
        return output
