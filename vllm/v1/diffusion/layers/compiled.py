# SPDX-License-Identifier: Apache-2.0
"""What torch compiles on a CPU is compiled for this one."""

from __future__ import annotations

import torch
import torch._inductor.config

_WIDTHS = {"AVX512": 512, "AVX2": 256}


def compile_for_this_cpu() -> None:
    """Lets the key of inductor's cache hold the width of this CPU's vectors, in bits.

    By default it does not, and code that a CPU with AVX-512 left in a folder gives wrong numbers on one
    with AVX2 (``findings/inductor_cache_isa.sh``): a home that machines share, an image that was built
    elsewhere. A width that the user has set stays.
    """
    config = torch._inductor.config.cpp
    if config.simdlen is None:
        config.simdlen = _WIDTHS.get(torch.backends.cpu.get_cpu_capability())
