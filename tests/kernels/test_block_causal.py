# SPDX-License-Identifier: Apache-2.0
"""block_causal_attention against the float64 reference."""

import pytest
import torch

from tests.kernels.attention_cases import Batch, check_attention, make_batch
from vllm.v1.diffusion.kernels import block_causal as attention_ops

# (rows, computed before them, block length)
PREFILLS = [(37, 0, 4), (64, 0, 32), (5, 0, 32), (130, 0, 6), (100, 64, 7), (48, 300, 16)]
WINDOWS = [(4, 20, 4), (8, 120, 4), (64, 256, 32), (32, 0, 32), (12, 1200, 6), (1, 40, 1)]


def dtypes(device: torch.device) -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16] + ([torch.float32] if device.type == "cpu" else [])


@pytest.mark.parametrize("head", [64, 80, 96, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 2), (7, 1), (20, 1)])
def test_shapes(device: torch.device, head: int, heads: int, kv_heads: int) -> None:
    kinds = list(enumerate(dtypes(device)))
    if device.type == "cpu":  # whose code knows no head sizes: one dtype at a time is enough
        kinds = [kinds[(head // 16 + heads) % len(kinds)]]
    for i, dtype in kinds:
        requests = [PREFILLS[i], WINDOWS[3 + i], PREFILLS[3 + i]]
        batch = make_batch(requests, heads=heads, kv_heads=kv_heads, head=head, dtype=dtype, seed=i)
        check_attention(batch.to(device))


@pytest.mark.parametrize("page_size", [16, 48])
def test_requests_of_all_kinds(device: torch.device, page_size: int) -> None:
    """In one batch, with empty requests and rows that belong to none, as in a padded graph."""
    requests = [*PREFILLS, (0, 0, 4), *WINDOWS, (0, 9, 32), (0, 0, 1)]
    for dtype in dtypes(device):
        check_attention(make_batch(requests, page_size=page_size, dtype=dtype, spare_rows=5).to(device))


@pytest.mark.parametrize("block", [1, 2, 3, 5, 31, 32, 33, 64, 100, 2**31 - 1])
def test_block_lengths(device: torch.device, block: int) -> None:
    """Windows that begin and end inside blocks too; the longest block sees all that is computed."""
    check_attention(make_batch([(150, 0, block), (70, 45, block)], seed=block % 97).to(device))


def test_peaked_scores(device: torch.device) -> None:
    """The running maximum moves far: the softmax picks single keys."""
    check_attention(make_batch([(90, 0, 8), (32, 500, 32)], sharpness=30.0).to(device))


def test_many_requests(device: torch.device) -> None:
    """More than a thread block can look through at once."""
    count = 140 if device.type == "cuda" else 30
    requests = [(1 + i % 5, i % 40, 1 + i % 7) for i in range(count)]
    check_attention(make_batch(requests, heads=2, kv_heads=1).to(device))


def test_strided_query_and_output(device: torch.device) -> None:
    """A view of a fused projection, and of a wider output."""
    batch = make_batch([(40, 8, 8)], heads=4, kv_heads=2).to(device)
    fused = torch.zeros(40, 8, 64, dtype=batch.query.dtype, device=device)
    fused[:, 2:6] = batch.query
    wide = torch.zeros(40, 4, 128, dtype=batch.query.dtype, device=device)
    batch.query = fused[:, 2:6]
    attention_ops.block_causal_attention(*batch.arguments(), wide[..., :64])
    batch.query = batch.query.contiguous()
    assert torch.equal(wide[..., :64], check_attention(batch))
    assert (wide[..., 64:] == 0).all()


def test_a_request_does_not_depend_on_its_batch() -> None:
    """Bit for bit, on the CPU; on Hopper the batch decides between two kernels."""
    requests = [*WINDOWS, *PREFILLS]
    batch = make_batch(requests)
    together = check_attention(batch)
    for r in range(0, len(requests), 3):
        first, end = batch.query_start_loc[r : r + 2].tolist()
        alone = Batch(*batch.arguments())
        alone.query = batch.query[first:end]
        alone.block_table = batch.block_table[r : r + 1]
        alone.query_start_loc = torch.tensor([0, end - first], dtype=torch.int32)
        alone.seq_lens, alone.block_length = batch.seq_lens[r : r + 1], batch.block_length[r : r + 1]
        assert torch.equal(check_attention(alone), together[first:end])


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("query", torch.zeros(8, 3, 64), "multiple of KV heads"),
        ("query", torch.zeros(8, 4, 64, dtype=torch.float64), "query must be"),
        ("key_cache", torch.zeros(3, 16, 2, 32), "key_cache must have query's head size"),
        (
            "value_cache",
            torch.zeros(3, 16, 2, 64, dtype=torch.float16),
            "value_cache must have query's dtype",
        ),
        ("seq_lens", torch.tensor([8, 8], dtype=torch.int32), "query_start_loc must have 3 entries"),
        ("seq_lens", torch.tensor([8]), "seq_lens has the wrong dtype"),
        ("block_table", torch.zeros(2, 1, dtype=torch.int32), "block_table must be int32"),
        ("block_length", torch.tensor([0], dtype=torch.int32), "block_length must be at least 1"),
        ("seq_lens", torch.tensor([7], dtype=torch.int32), "seq_lens must cover"),
        ("seq_lens", torch.tensor([90], dtype=torch.int32), "too few pages"),
        ("block_table", torch.tensor([[9]], dtype=torch.int32), "a page that does not exist"),
        ("query_start_loc", torch.tensor([0, 9], dtype=torch.int32), "query_start_loc must ascend"),
    ],
)
def test_wrong_arguments_are_named(field: str, value: torch.Tensor, says: str) -> None:
    batch = make_batch([(8, 0, 4)], dtype=torch.float32)
    setattr(batch, field, value)
    with pytest.raises(RuntimeError, match=says):
        attention_ops.block_causal_attention(*batch.arguments(), torch.zeros_like(batch.query))
