# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: the CPU's draws, CUDA graphs, other streams, odd addresses."""

import pytest
import torch

from tests.kernels.attention_cases import assert_close, check_attention, make_batch
from tests.kernels.kernel_cases import check_row_stats, make_logits, row_arguments
from tests.kernels.unmask_cases import oracle, random_state
from vllm.v1.diffusion.kernels import block_causal as attention_ops
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels.noise import noise
from vllm.v1.diffusion.kernels.row_stats import RowStats, row_stats
from vllm.v1.diffusion.kernels.unmask import unmask

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_and_cuda_draw_the_same_ids(dtype: torch.dtype) -> None:
    for vocab, scale in ((64, 0.0), (50257, 0.5), (151936, 3.0)):
        logits = make_logits(40, vocab, dtype, scale=scale)
        arguments = row_arguments(logits, [0.5, 1.0, 0.0, 2.0])
        on_cpu = row_stats(logits, **arguments, banned=5)
        moved = {k: v.cuda() for k, v in arguments.items()}
        on_cuda = row_stats(logits.cuda(), **moved, banned=5)
        assert torch.equal(on_cpu.sample, on_cuda.sample.cpu())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", range(9))
def test_the_address_of_a_row_does_not_matter(dtype: torch.dtype, shift: int) -> None:
    """Bit for bit the same from every alignment, at the end of an allocation too."""
    row = make_logits(1, 10007, dtype).cuda()
    arguments = row_arguments(row, 1.0)
    aligned = row_stats(row, **arguments)
    moved = torch.empty(shift + 10007, dtype=dtype, device="cuda")[shift:]
    moved.copy_(row[0])
    shifted = row_stats(moved[None], **arguments)
    for name in aligned._fields:
        assert torch.equal(getattr(aligned, name), getattr(shifted, name)), name


def test_graph_capture_and_replay() -> None:
    """A step of both kernels is captured once and replayed on other inputs."""
    state = random_state(3, rules=[1, 2, 3, 4, 5, 6], width=32, requests=8).to(torch.device("cuda"))
    rows = len(state.token)
    logits = torch.zeros(rows, 5000, dtype=torch.bfloat16, device="cuda")
    arguments = row_arguments(logits, [1.0, 0.0])

    def step() -> tuple[RowStats, torch.Tensor]:
        stats = row_stats(logits, **arguments, banned=4999)
        fields = state.arguments() | {
            "token": stats.sample,
            "confidence": stats.sample_prob,
            "entropy": stats.entropy,
        }
        return stats, unmask(**fields)

    initial = state.clone()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stats, remaining = step()
    for seed in range(3):
        logits.copy_(make_logits(rows, 5000, torch.bfloat16, seed=seed))
        for name in ("canvas", "masked", "unmasked_at", "step"):
            getattr(state, name).copy_(getattr(initial, name))
        arguments["offset"].add_(1)
        graph.replay()
        expected = check_row_stats(logits, arguments, banned=4999)
        for name in expected._fields:
            assert torch.equal(getattr(stats, name), getattr(expected, name)), name
        by_python = initial.clone().to(torch.device("cpu"))
        by_python.token, by_python.confidence = stats.sample.cpu(), stats.sample_prob.cpu()
        by_python.entropy = stats.entropy.cpu()
        assert remaining.tolist() == oracle(by_python)
        assert torch.equal(state.canvas.cpu(), by_python.canvas)


def test_runs_on_the_current_stream() -> None:
    """Behind a long wait on a side stream, the kernel sees what that stream wrote."""
    logits = torch.zeros(4, 3000, device="cuda")
    wanted = make_logits(4, 3000)
    arguments = row_arguments(logits)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]
        logits.copy_(wanted.cuda(non_blocking=True))
        stats = row_stats(logits, **arguments)
    stream.synchronize()
    assert torch.equal(stats.sample.cpu(), wanted.argmax(-1))


def test_no_synchronisation() -> None:
    state = random_state(5, rules=[1, 2, 4], width=32, requests=8).to(torch.device("cuda"))
    logits = make_logits(64, 5000).cuda()
    arguments = row_arguments(logits, 1.0)
    position = torch.arange(64 * 32, device="cuda").view(64, 32)
    torch.cuda.set_sync_debug_mode("error")
    try:
        row_stats(logits, **arguments)
        unmask(**state.arguments())
        noise(arguments["seed"][:, None], position, position[:, :1].int(), gumbel=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_no_buffer_of_the_size_of_the_logits() -> None:
    logits = make_logits(256, 50257).cuda()
    arguments = row_arguments(logits, 1.0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    row_stats(logits, **arguments)
    assert torch.cuda.max_memory_allocated() - before < logits.nbytes / 100


def test_a_slot_out_of_range_is_left_alone() -> None:
    state = random_state(9, rules=[1], width=8, requests=4).to(torch.device("cuda"))
    state.masked[:] = True
    state.slots[2] = 1000
    state.rule[state.slots[0]] = 7
    before = state.canvas.clone()
    remaining = unmask(**state.arguments()).tolist()
    assert remaining[0] == remaining[2] == -1
    assert torch.equal(state.canvas[state.slots[0]], before[state.slots[0]])


def test_attention_graph_serves_other_lengths() -> None:
    """Captured for four requests; replayed with other rows, lengths, blocks and an empty request."""
    device = torch.device("cuda")
    captured = make_batch([(16, 16, 4)] * 4, seed=1).to(device)
    out = torch.zeros_like(captured.query)

    def step() -> None:
        attention_ops.block_causal_attention(*captured.arguments(), out)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for seed, requests in enumerate(([(30, 2, 6), (1, 31, 1), (0, 0, 8), (33, 0, 32)], [(8, 24, 8)] * 4)):
        batch = make_batch(requests, seed=10 + seed).to(device)
        used = len(batch.query)
        for name in ("query", "key_cache", "value_cache", "block_table"):
            mine, theirs = getattr(captured, name), getattr(batch, name)
            mine[tuple(slice(min(a, b)) for a, b in zip(mine.shape, theirs.shape, strict=True))] = theirs[
                tuple(slice(min(a, b)) for a, b in zip(mine.shape, theirs.shape, strict=True))
            ]
        for name in ("query_start_loc", "seq_lens", "block_length"):
            getattr(captured, name).copy_(getattr(batch, name))
        graph.replay()
        assert_close(out[:used], reference.attention(*captured.arguments())[:used])


def test_attention_leaves_out_of_range_alone() -> None:
    """A page that does not exist reads as zeros, rows out of range are not written; nothing faults."""
    batch = make_batch([(16, 16, 4), (16, 0, 4)]).to(torch.device("cuda"))
    batch.block_table[0, 0] = 10**6
    batch.block_table[1, 0] = -1
    batch.query_start_loc[2] = 1000
    out = torch.full_like(batch.query, 7.0)
    attention_ops.block_causal_attention(*batch.arguments(), out)
    assert (out[16:] == 7.0).all()
    assert out[:16].isfinite().all()


def test_attention_matches_the_cpu() -> None:
    batch = make_batch([(100, 0, 4), (32, 600, 32)], heads=8, kv_heads=2, head=128)
    on_cuda = check_attention(batch.to(torch.device("cuda")))
    assert_close(on_cuda.cpu(), check_attention(batch).double())
