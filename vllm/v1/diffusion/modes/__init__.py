# SPDX-License-Identifier: Apache-2.0
"""The modes of diffusion decoding: data, from which each process loads its own parts."""

from vllm.v1.diffusion.modes.anchored import ANCHORED
from vllm.v1.diffusion.modes.answer import EXACT, FROM_PROMPT, FROM_PROMPT_SHIFTED
from vllm.v1.diffusion.modes.base import Mode, Part, mode_of
from vllm.v1.diffusion.modes.bidirectional import BIDIRECTIONAL
from vllm.v1.diffusion.modes.causal import CAUSAL
from vllm.v1.diffusion.modes.elastic import ELASTIC
from vllm.v1.diffusion.modes.grid import BlockGrid, BlockRule
from vllm.v1.diffusion.modes.multi_block import MULTI_BLOCK
from vllm.v1.diffusion.modes.renoising import RENOISING
from vllm.v1.diffusion.modes.reordered import REORDERED
from vllm.v1.diffusion.modes.seeded import SEEDED
from vllm.v1.diffusion.modes.verified import VERIFIED

MODES = {
    mode.name: mode
    for mode in (
        *(CAUSAL, BIDIRECTIONAL, ANCHORED, RENOISING, EXACT, FROM_PROMPT, FROM_PROMPT_SHIFTED),
        *(SEEDED, REORDERED, ELASTIC, VERIFIED, MULTI_BLOCK),
    )
}
"""The built-in modes, by name."""

__all__ = [
    "ANCHORED",
    "BIDIRECTIONAL",
    "CAUSAL",
    "ELASTIC",
    "EXACT",
    "FROM_PROMPT",
    "FROM_PROMPT_SHIFTED",
    "MODES",
    "MULTI_BLOCK",
    "RENOISING",
    "REORDERED",
    "SEEDED",
    "VERIFIED",
    "BlockGrid",
    "BlockRule",
    "Mode",
    "Part",
    "mode_of",
]
