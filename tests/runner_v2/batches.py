# SPDX-License-Identifier: Apache-2.0
"""Random states and batches of a model runner, as its kernels see them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass
class Batch:
    """One step over some of the slots. Arrays of slots have one entry a slot."""

    slots: int
    width: int  # model length
    idx_mapping: torch.Tensor
    query_start_loc: torch.Tensor
    num_computed: torch.Tensor
    prefill_len: torch.Tensor
    prompt_len: torch.Tensor
    total_len: torch.Tensor
    all_token_ids: torch.Tensor
    drafts: torch.Tensor  # per request
    draft_tokens: torch.Tensor
    cu_num_logits: torch.Tensor

    @property
    def requests(self) -> int:
        return len(self.idx_mapping)

    @property
    def tokens(self) -> int:
        return int(self.query_start_loc[self.requests])

    @property
    def seq_lens(self) -> torch.Tensor:
        lengths = self.query_start_loc.diff()[: self.requests]
        return (self.num_computed[self.idx_mapping] + lengths).to(torch.int32)


def int32(values: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.int32)


def random_batch(
    seed: int,
    requests: int | None = None,
    slots: int = 12,
    width: int = 64,
    most_drafts: int = 4,
    new_tokens: int = 1,
    vocabulary: int = 50,
) -> Batch:
    """Requests in prefill (chunked or not) and in decode, with or without drafts.

    Args:
        seed: of everything.
        requests: how many; random if None.
        slots: rows of the states.
        width: columns of the token table.
        most_drafts: tokens drafted a request, at most.
        new_tokens: 1 for autoregressive models, 0 for diffusion.
        vocabulary: token ids are below.
    """
    rng = np.random.default_rng(seed)
    requests = int(rng.integers(1, slots + 1)) if requests is None else requests
    idx = rng.permutation(slots)[:requests]
    prefill = rng.integers(1, width - 2 * most_drafts - 1, slots)
    prompt = rng.integers(1, prefill + 1)
    computed = np.zeros(slots, dtype=np.int64)
    lengths: list[int] = []
    drafts: Any = []  # an array in the end
    for slot in idx:
        if rng.random() < 0.5:  # prefill, perhaps only a chunk, perhaps not from the start
            computed[slot] = rng.integers(0, prefill[slot])
            lengths.append(int(rng.integers(1, prefill[slot] - computed[slot] + 1)))
            drafts.append(0 if new_tokens else -1)
        else:
            draft = int(rng.integers(1 - new_tokens, most_drafts + 1))
            computed[slot] = prefill[slot] + rng.integers(0, most_drafts)
            lengths.append(draft + new_tokens)
            drafts.append(draft)
    drafts = np.array(drafts)
    logits = np.where(drafts < 0, 0, drafts + new_tokens)
    start = np.concatenate([[0], np.cumsum(lengths)])
    return Batch(
        slots=slots,
        width=width,
        idx_mapping=torch.tensor(idx, dtype=torch.int64),
        query_start_loc=int32(start),
        num_computed=int32(computed),
        prefill_len=int32(prefill),
        prompt_len=int32(prompt),
        total_len=int32(np.maximum(prefill, computed + 1)),
        all_token_ids=int32(rng.integers(0, vocabulary, (slots, width))),
        drafts=int32(np.maximum(drafts, 0)),
        draft_tokens=torch.tensor(rng.integers(0, vocabulary, (slots, most_drafts))),
        cu_num_logits=int32(np.concatenate([[0], np.cumsum(logits)])),
    )
