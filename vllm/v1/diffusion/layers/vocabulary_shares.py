# SPDX-License-Identifier: Apache-2.0
"""Leaves logits where tensor-parallel ranks have computed them: each has its share of the vocabulary.

Upstream gathers whole rows on every rank. For 64 blocks of 32 of an 8B model these are 620 MB per step, of
which the sampler mostly reads a few numbers per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from vllm.distributed import get_tp_group, tensor_model_parallel_all_gather
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.v1.diffusion.kernels.merge_row_stats import MOST_IDS
from vllm.v1.diffusion.layers.classes import retype


class ShareOfLogits(LogitsProcessor):
    """Gives a rank's own logits, those of its padding ids too."""

    def _gather_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


@dataclass(frozen=True)
class VocabularyShares:
    """A rank's share of the vocabulary.

    Attributes:
        first: Its first id.
        width: How many ids it has.
        vocabulary: How many ids all ranks have.
    """

    first: int
    width: int
    vocabulary: int

    def own(self, share: torch.Tensor) -> torch.Tensor:
        """The logits of the share's ids, ``[N, width]``, without those of padding ids."""
        return share[:, : self.width]

    def whole(self, share: torch.Tensor) -> torch.Tensor:
        """Whole rows, ``[N, vocabulary]``, as upstream gathers them. All ranks must call it."""
        rows: torch.Tensor = tensor_model_parallel_all_gather(share)
        return rows[:, : self.vocabulary]

    def of_all(self, numbers: torch.Tensor) -> torch.Tensor:
        """What every rank has of some numbers, in the order of the ranks. All ranks must call it.

        Args:
            numbers: Of any shape, contiguous, the same for all ranks.

        Returns:
            ``[ranks, *shape]``.
        """
        gathered: torch.Tensor = get_tp_group().all_gather(numbers[None], dim=0)
        return gathered

    def own_id(self, token_id: int) -> int:
        """An id of the vocabulary as one of the share's; -1 if it has not got it."""
        return token_id - self.first if self.first <= token_id < self.first + self.width else -1


def share_vocabulary(model: nn.Module) -> VocabularyShares | None:
    """Makes a model's head give each rank's logits alone.

    Args:
        model: A model whose weights are loaded, its last stage.

    Returns:
        This rank's share; None where rows are whole: with one rank, with a head of another kind, and with a
        vocabulary that not every rank has two ids of.
    """
    processors = [module for module in model.modules() if isinstance(module, LogitsProcessor)]
    embeddings = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    # An embedding that no head stands beside is the head too.
    heads = [module for module in embeddings if isinstance(module, ParallelLMHead)] or embeddings
    if len(processors) != 1 or len(heads) != 1 or type(processors[0]) is not LogitsProcessor:
        return None
    (processor,), (head,) = processors, heads
    ranks, vocabulary = head.tp_size, head.org_vocab_size
    smallest = vocabulary - (ranks - 1) * head.num_embeddings_per_partition
    plain = head.num_embeddings == vocabulary == processor.org_vocab_size and not processor.logits_as_input
    if ranks == 1 or not plain or smallest < 2 or vocabulary > MOST_IDS:
        return None
    retype(processor, ShareOfLogits)
    indices = head.shard_indices
    return VocabularyShares(indices.org_vocab_start_index, indices.num_org_elements, vocabulary)
