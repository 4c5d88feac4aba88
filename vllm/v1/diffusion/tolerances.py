# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Diffusion project
"""How far each operator may differ from its reference in float64.

One table, used by every test of the operators. Integer outputs (ids, canvases, counts) must be
equal. The logits' dtype does not matter: the kernels widen it to float32 without loss.
"""

from typing import NamedTuple


class Tolerance(NamedTuple):
    """``|actual - expected| <= absolute + relative * |expected|``."""

    relative: float
    absolute: float


TOLERANCES: dict[str, dict[str, Tolerance]] = {
    # float32 exponentials (2 ulp), summed in 32 lanes of at most 128 terms, then in float64. The
    # rounding of (l - max) / T grows with its size, up to 87: about 5e-6 relative where e^x is
    # still above 1e-38; ids that far down do not weigh in a sum, but their own probability, which
    # is computed in float64, does not have it. Measured: see docs of the kernels' tests.
    "row_stats": {
        "sample_prob": Tolerance(2e-6, 1e-12),
        "top1": Tolerance(2e-6, 1e-12),
        "top2": Tolerance(2e-6, 1e-12),
        "entropy": Tolerance(2e-6, 2e-6),
        "lse": Tolerance(2e-7, 2e-6),
    },
    "unmask": {},
}
