# SPDX-License-Identifier: Apache-2.0
"""Inputs for the attention tests, and the comparison with the reference."""

from dataclasses import dataclass, fields, replace
from typing import TypeAlias, cast

import torch
from torch import Tensor

from vllm.v1.diffusion.kernels import block_causal as attention_ops
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels.tolerances import TOLERANCES

Arguments: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float]


@dataclass
class Batch:
    """The operator's arguments but the output, in their order."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    block_length: Tensor
    scale: float

    def arguments(self) -> Arguments:
        return cast(Arguments, tuple(getattr(self, f.name) for f in fields(self)))

    def to(self, device: torch.device) -> "Batch":
        """The same batch elsewhere, the caches again views of one cache in upstream's layout."""
        head = self.key_cache.shape[-1]
        kv = torch.cat([self.key_cache, self.value_cache], dim=-1).transpose(1, 2).contiguous().to(device)
        key, value = kv.transpose(1, 2).split(head, dim=-1)  # type: ignore[no-untyped-call]
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in moved.items()}
        return replace(Batch(**moved), key_cache=key, value_cache=value)


def make_batch(
    requests: list[tuple[int, int, int]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head: int = 64,
    page_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    spare_rows: int = 0,
    sharpness: float = 1.0,
) -> Batch:
    """Requests of (rows, computed before them, block length), their pages shuffled.

    What no request owns is NaN: it must not be read, or not count.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [rows + before for rows, before, _ in requests]
    counts = [-(-n // page_size) for n in lengths]
    pages = sum(counts) + 2
    order = torch.randperm(pages, generator=generator).tolist()
    kv = torch.full((pages, kv_heads, page_size, 2 * head), torch.nan)
    table = torch.zeros(len(requests), max([*counts, 1]) + 1, dtype=torch.int32)
    for r, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        for i in range(count):
            page = order.pop()
            table[r, i] = page
            used = min(page_size, length - i * page_size)
            kv[page, :, :used] = torch.randn(kv_heads, used, 2 * head, generator=generator)
    starts = [0]
    for rows, _, _ in requests:
        starts.append(starts[-1] + rows)
    tokens = starts[-1] + spare_rows
    key, value = kv.to(dtype).transpose(1, 2).split(head, dim=-1)  # type: ignore[no-untyped-call]
    return Batch(
        query=(torch.randn(tokens, heads, head, generator=generator) * sharpness).to(dtype),
        key_cache=key,
        value_cache=value,
        block_table=table,
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        block_length=torch.tensor([b for _, _, b in requests], dtype=torch.int32),
        scale=head**-0.5,
    )


def assert_close(actual: Tensor, expected: Tensor, note: str = "") -> None:
    name = str(actual.dtype).removeprefix("torch.")
    tolerance = TOLERANCES["block_causal"][name]
    torch.testing.assert_close(
        actual.double(),
        expected,
        rtol=tolerance.relative,
        atol=tolerance.absolute,
        msg=lambda text: f"{note} {name}: {text}",
    )


def check_attention(batch: Batch, note: str = "") -> Tensor:
    """Runs ``block_causal_attention`` on a poisoned output and compares it with the reference."""
    out = torch.full_like(batch.query, 7.0)
    attention_ops.block_causal_attention(*batch.arguments(), out)
    expected = reference.attention(*batch.arguments())
    used = int(batch.query_start_loc[-1])
    assert_close(out[:used], expected[:used], note)
    assert (out[used:] == 7.0).all(), "rows of no request were written"
    return out
