# SPDX-License-Identifier: Apache-2.0
"""Random numbers of canvas positions, for policies that draw positions.

They come from Philox4x32-10 (Salmon et al., SC'11), keyed as the draws of tokens are: by
the request's seed, the token's position and the step. So they depend neither on the batch
nor on the device. Each function is one kernel.
"""

from __future__ import annotations

from torch import Tensor

from vllm.v1.diffusion.policies.parameter import MAX_STEPS


def uniform(seed: Tensor, position: Tensor, step: Tensor) -> Tensor:
    """A number in (0, 1) for every position.

    Args:
        seed: The requests' seeds, int64 ``[R, 1]``.
        position: Positions of the tokens, int64 ``[R, W]``.
        step: Steps made on the block, int ``[R, 1]``.

    Returns:
        float64 ``[R, W]``.
    """
    return _noise(seed, position, step, gumbel=False)


def random_ids(seed: Tensor, position: Tensor, number: Tensor, vocab_size: int) -> Tensor:
    """A token id for every position, each of the vocabulary equally probable.

    Args:
        seed: The requests' seeds, int64 ``[R, 1]``.
        position: Positions of the tokens, int64 ``[R, W]``.
        number: Of the draw within the block, int ``[R, 1]``.
        vocab_size: Ids to draw from.

    Returns:
        int64 ``[R, W]``.
    """
    # No step has such a number: what draws tokens uses other random numbers.
    step = (number + MAX_STEPS).clamp(max=2 * MAX_STEPS - 1)
    return (uniform(seed, position, step) * vocab_size).long()


def gumbel(seed: Tensor, position: Tensor, step: Tensor) -> Tensor:
    """Gumbel noise for every position, float64 ``[R, W]``; see :func:`uniform`.

    The k highest of ``log p + noise`` are k draws from p without replacement.
    """
    return _noise(seed, position, step, gumbel=True)


def _noise(seed: Tensor, position: Tensor, step: Tensor, gumbel: bool) -> Tensor:
    # Every process names policies, also those that have no use for the compiled operators.
    from vllm.v1.diffusion.kernels.noise import noise

    return noise(seed, position, step, gumbel)
