# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM-Diffusion project
"""How far each operator may differ from its reference in float64.

One table, used by every test of the operators. Integer outputs (ids, canvases, counts), and numbers
without an entry, must be equal. The logits' dtype does not matter: the kernels widen it to float32
without loss.
"""

from typing import NamedTuple


class Tolerance(NamedTuple):
    """``|actual - expected| <= absolute + relative * |expected|``."""

    relative: float
    absolute: float


TOLERANCES: dict[str, dict[str, Tolerance]] = {
    # float32 exponentials, summed in float32 within a slice of a row and in float64 from there on.
    # Worst seen on the CPU, over vocabularies of 64 to 151936, logits of standard deviation 0.01 to
    # 300 and stat_temperature 0.1 to 2: probabilities 2.8e-7 relative, entropy 4.9e-7 nats, lse
    # 6.1e-8 relative (float32's own rounding). CUDA's exponential is base 2 and rounds x log2(e)
    # once more, which is worth up to 1e-6.
    "row_stats": {
        "sample_prob": Tolerance(2e-6, 1e-12),
        "top1": Tolerance(2e-6, 1e-12),
        "top2": Tolerance(2e-6, 1e-12),
        "entropy": Tolerance(2e-6, 2e-6),
        "lse": Tolerance(2e-7, 2e-6),
    },
    # Two roundings: those of a share's numbers, and of what is made of them.
    "merge_row_stats": {
        "sample_prob": Tolerance(2.5e-6, 1e-12),
        "top1": Tolerance(2.5e-6, 1e-12),
        "top2": Tolerance(2.5e-6, 1e-12),
        "entropy": Tolerance(2.5e-6, 2.5e-6),
        "lse": Tolerance(2e-7, 2.5e-6),
    },
    "unmask": {},
    # Uniform numbers are equal bit for bit. Two logarithms, each rounded once or nearly so, by another
    # library than the reference's; the noise may be 0, near which an ulp of the inner one counts whole.
    "noise": {
        "gumbel": Tolerance(1e-15, 1e-15),
    },
    "timetable": {},
    # By dtype. The output is rounded to it (bfloat16 2e-3, float16 5e-4); on CUDA so are the softmax's
    # weights before they are multiplied with the values.
    "block_causal": {
        "float32": Tolerance(2e-6, 2e-6),
        "float16": Tolerance(2e-3, 1e-3),
        "bfloat16": Tolerance(1e-2, 8e-3),
    },
    # By dtype. Products are summed in float32; the sum is rounded once. If gated, gate, up and the
    # activation are rounded before they are multiplied, in the reference too, but from another sum.
    "skinny_linear": {
        "float16": Tolerance(2e-3, 2e-3),
        "bfloat16": Tolerance(1.6e-2, 1.6e-2),
    },
    # Hopper's matrix unit adds products of 8-bit numbers to some 13 bits of the sum so far, and cuts off
    # the rest: up to 1.2e-4 of the sum for every 32 columns, towards 0. If gated: of gate and up each.
    "skinny_linear_fp8": {
        "float16": Tolerance(4e-2, 4e-2),
        "bfloat16": Tolerance(5e-2, 5e-2),
    },
    # By dtype. The quotient, and then the product, are rounded.
    "add_rms_norm": {
        "float16": Tolerance(2e-3, 1e-6),
        "bfloat16": Tolerance(1.6e-2, 1e-6),
    },
    # By dtype. Rounded once.
    "qk_norm_rope_cache": {
        "float16": Tolerance(1e-3, 1e-3),
        "bfloat16": Tolerance(8e-3, 8e-3),
    },
}
