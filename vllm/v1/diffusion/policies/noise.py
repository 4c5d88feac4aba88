# SPDX-License-Identifier: Apache-2.0
"""Random numbers of canvas positions, for policies that draw positions.

They come from Philox4x32-10 (Salmon et al., SC'11), keyed as the draws of tokens are: by
the request's seed, the token's position and the step. So they depend neither on the batch
nor on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK32 = 0xFFFFFFFF
_STEP_BITS = 16
_DOMAIN = 1
"""Last word of the counter; draws of tokens have 0 there, so the two never meet."""


def uniform(seed: Tensor, position: Tensor, step: Tensor) -> Tensor:
    """A number in (0, 1) for every position.

    Args:
        seed: The requests' seeds, int64 ``[R, 1]``.
        position: Positions of the tokens, int64 ``[R, W]``.
        step: Steps made on the block, int ``[R, 1]``.

    Returns:
        float64 ``[R, W]``.
    """
    offset = (position << _STEP_BITS) + step
    key = [seed & _MASK32, (seed >> 32) & _MASK32]
    c0, c1 = offset & _MASK32, (offset >> 32) & _MASK32
    c2, c3 = torch.zeros_like(offset), torch.full_like(offset, _DOMAIN)
    for _ in range(10):
        # Products of two 32-bit numbers wrap into int64 with their 64 bits intact.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0 = ((b >> 32) & _MASK32) ^ c1 ^ key[0]
        c1 = b & _MASK32
        c2 = ((a >> 32) & _MASK32) ^ c3 ^ key[1]
        c3 = a & _MASK32
        key = [(key[0] + 0x9E3779B9) & _MASK32, (key[1] + 0xBB67AE85) & _MASK32]
    return (c0.double() + 0.5) * 2.0**-32


def gumbel(seed: Tensor, position: Tensor, step: Tensor) -> Tensor:
    """Gumbel noise for every position, float64 ``[R, W]``; see :func:`uniform`.

    The k highest of ``log p + noise`` are k draws from p without replacement.
    """
    return -torch.log(-torch.log(uniform(seed, position, step)))
