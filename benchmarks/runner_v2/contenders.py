# SPDX-License-Identifier: Apache-2.0
"""The same kernels in numba and in NumPy, to be measured against the C++ ones.

Both get arrays where the operators read addresses, which spares them a conversion. NumPy has no loop
over tokens: it repeats and gathers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def prepare_pos_seq_lens_numpy(
    pos: Array, seq_lens: Array, idx: Array, start: Array, computed: Array, most: int
) -> None:
    requests = len(idx)
    lengths = np.diff(start[: requests + 1])
    done = computed[idx]
    seq_lens[:requests] = done + lengths
    seq_lens[requests:most] = 0
    tokens = start[requests]
    pos[:tokens] = np.arange(tokens) + np.repeat(done - start[:requests], lengths)


def combine_numpy(
    ids: Array,
    idx: Array,
    last: Array,
    start: Array,
    seq_lens: Array,
    prefill: Array,
    drafts: Array,
    cu: Array,
    out: Array,
    new: int,
) -> None:
    requests = len(idx)
    counts = np.diff(cu)
    ends = start[1 : requests + 1]
    place = np.arange(cu[requests]) - np.repeat(cu[:requests], counts)
    out[:] = np.repeat(ends - counts, counts) + place
    decode = seq_lens[:requests] > prefill[idx]
    if new:
        own = decode & (seq_lens[:requests] - counts >= prefill[idx])
        ids[(ends - counts)[own]] = last[idx[own], 0]
    drafted = place >= new
    drafted &= np.repeat(decode, counts)
    ids[out[drafted]] = drafts[np.repeat(idx, counts)[drafted], place[drafted] - new]


def post_update_numpy(
    idx: Array,
    computed: Array,
    last: Array,
    bins: Array,
    sampled: Array,
    num_sampled: Array,
    rejected: Array,
    start: Array,
    table: Array,
    total: Array,
) -> None:
    most = sampled.shape[1]
    taken = np.arange(most) < num_sampled[:, None]
    row, column = np.nonzero(taken)
    slot = idx[row]
    tokens = sampled[row, column]
    table[slot, total[slot] + column] = tokens
    np.add.at(bins, (slot, tokens), 1)
    some = num_sampled > 0
    last[idx[some], 0] = sampled[some, num_sampled[some] - 1]
    total[idx] += num_sampled
    computed[idx] += np.diff(start) - rejected


def gather_numpy(idx: Array, source: Array, target: Array, counts: Array) -> None:
    rows = source[idx]
    keep = np.arange(source.shape[1]) < counts[idx][:, None]
    np.copyto(target[: len(idx)], rows, where=keep)


def slots_numpy(
    most: int, idx: Array, start: Array, pos: Array, table: Array, block: int, out: Array
) -> None:
    requests = len(idx)
    tokens = start[requests]
    owner = np.repeat(idx, np.diff(start[: requests + 1]))
    place = pos[:tokens]
    out[:tokens] = table[owner, place // block] * block + place % block
    out[tokens:most] = -1


def prepare_pos_seq_lens_loops(
    pos: Array, seq_lens: Array, idx: Array, start: Array, computed: Array, most: int
) -> None:
    requests = len(idx)
    for i in range(requests):
        done = computed[idx[i]]
        seq_lens[i] = done + start[i + 1] - start[i]
        for t in range(start[i], start[i + 1]):
            pos[t] = done + t - start[i]
    for i in range(requests, most):
        seq_lens[i] = 0


def combine_loops(
    ids: Array,
    idx: Array,
    last: Array,
    start: Array,
    seq_lens: Array,
    prefill: Array,
    drafts: Array,
    cu: Array,
    out: Array,
    new: int,
) -> None:
    for i in range(len(idx)):
        slot, end, count = idx[i], start[i + 1], cu[i + 1] - cu[i]
        for k in range(count):
            out[cu[i] + k] = end - count + k
        if seq_lens[i] <= prefill[slot]:
            continue
        if new > 0 and seq_lens[i] - count >= prefill[slot]:
            ids[end - count] = last[slot, 0]
        drafted = count - new
        for k in range(drafted):
            ids[end - drafted + k] = drafts[slot, k]


def post_update_loops(
    idx: Array,
    computed: Array,
    last: Array,
    bins: Array,
    sampled: Array,
    num_sampled: Array,
    rejected: Array,
    start: Array,
    table: Array,
    total: Array,
) -> None:
    for i in range(len(idx)):
        slot = idx[i]
        if slot < 0:
            continue
        for k in range(num_sampled[i]):
            token = sampled[i, k]
            table[slot, total[slot]] = token
            total[slot] += 1
            last[slot, 0] = token
            bins[slot, token] += 1
        computed[slot] += start[i + 1] - start[i] - rejected[i]


def gather_loops(idx: Array, source: Array, target: Array, counts: Array) -> None:
    for i in range(len(idx)):
        slot = idx[i]
        for k in range(counts[slot]):
            target[i, k] = source[slot, k]


def slots_loops(
    most: int, idx: Array, start: Array, pos: Array, table: Array, block: int, out: Array
) -> None:
    requests = len(idx)
    for i in range(requests):
        for t in range(start[i], start[i + 1]):
            out[t] = table[idx[i], pos[t] // block] * block + pos[t] % block
    for t in range(start[requests], most):
        out[t] = -1


PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "prepare_pos_seq_lens": (prepare_pos_seq_lens_numpy, prepare_pos_seq_lens_loops),
    "combine_sampled_and_draft_tokens": (combine_numpy, combine_loops),
    "post_update": (post_update_numpy, post_update_loops),
    "gather_block_tables": (gather_numpy, gather_loops),
    "compute_slot_mappings": (slots_numpy, slots_loops),
}
"""Kernel -> (NumPy, loops that numba compiles)."""
