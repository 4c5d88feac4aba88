# SPDX-License-Identifier: Apache-2.0
"""Block-causal attention against FlashAttention 3 and FlexAttention, in the same run; CUDA only.

    python benchmarks/kernels/attention.py [--only prefill windows bidirectional] [--page-size 16]

Heads of 128, 32 of them over 8 KV heads (SDAR-8B's shape), bf16, seeded. FlashAttention 3 is that of
upstream's wheel (``fa3.py``); without it, and without xformers, their lines are left out. `rate` counts
the multiplications of the keys that are seen. Every result is compared with ours before it is timed.
"""

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import fa3
import torch
from harness import machine, measure
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from vllm.v1.diffusion.kernels import block_causal as attention_ops

HEADS, KV_HEADS, HEAD = 32, 8, 128
SCALE = HEAD**-0.5
FLEX = torch.compile(flex_attention)


@dataclass
class Work:
    """Requests of the same shape over a paged cache, and the same keys in a row."""

    requests: int
    rows: int
    before: int
    block: int
    page_size: int

    def __post_init__(self) -> None:
        generator = torch.Generator(device="cuda").manual_seed(self.requests + self.rows)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)

        self.length = self.rows + self.before
        pages = -(-self.length // self.page_size)
        count = self.requests * pages
        kv = normal(count, KV_HEADS, self.page_size, 2 * HEAD).transpose(1, 2)
        self.key, self.value = kv.split(HEAD, dim=-1)  # type: ignore[no-untyped-call]
        order = torch.randperm(count, generator=generator, device="cuda").to(torch.int32)
        self.table = order.view(self.requests, pages)
        self.query = normal(self.requests * self.rows, HEADS, HEAD)
        steps = torch.arange(self.requests + 1, dtype=torch.int32, device="cuda")
        self.query_start = steps * self.rows
        self.seq_lens = torch.full_like(steps[1:], self.length)
        self.blocks = torch.full_like(steps[1:], self.block)
        self.out = torch.empty_like(self.query)

    def shared(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float]:
        """The operator's arguments but the output."""
        return (
            self.query,
            self.key,
            self.value,
            self.table,
            self.query_start,
            self.seq_lens,
            self.blocks,
            SCALE,
        )

    def whole(self) -> Tensor:
        """block_causal_attention."""
        attention_ops.block_causal_attention(*self.shared(), self.out)
        return self.out

    def fa3(self, causal: bool = True) -> tuple[Tensor, Tensor]:
        """FlashAttention 3 over the paged cache."""
        both: tuple[Tensor, Tensor] = fa3.attention(
            self.query,
            self.key,
            self.value,
            self.query_start,
            self.seq_lens,
            self.rows,
            self.length,
            SCALE,
            causal,
            self.table,
            self.out,
        )
        return both

    def fa3_by_block(self) -> Callable[[], Tensor]:
        """FlashAttention 3, one bidirectional sequence a block, as without our kernels."""
        per = self.rows // self.block
        steps = torch.arange(self.requests * per + 1, dtype=torch.int32, device="cuda")
        ends = (steps[:-1] % per + 1) * self.block + self.before
        table = self.table.repeat_interleave(per, dim=0)

        def call() -> Tensor:
            out: Tensor = fa3.attention(
                self.query,
                self.key,
                self.value,
                steps * self.block,
                ends,
                self.block,
                self.length,
                SCALE,
                False,
                table,
                self.out,
            )[0]
            return out

        return call

    def contiguous(self) -> tuple[Tensor, Tensor]:
        """Keys and values in a row, ``[requests, length, KV_HEADS, HEAD]``."""
        pages = self.table.long()
        key, value = (x[pages].flatten(1, 2)[:, : self.length] for x in (self.key, self.value))
        return key.contiguous(), value.contiguous()

    def flex(self) -> Callable[[], Tensor]:
        """FlexAttention with the block-causal mask, on keys in a row."""
        key, value = (x.transpose(1, 2).contiguous() for x in self.contiguous())
        query = self.query.view(self.requests, self.rows, HEADS, HEAD).transpose(1, 2).contiguous()
        block, before = self.block, self.before

        def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q + before) // block >= k // block

        mask = create_block_mask(sees, None, None, self.rows, self.length, device="cuda")
        return lambda: FLEX(query, key, value, block_mask=mask, scale=SCALE, enable_gqa=True)

    def pairs(self) -> int:
        """Query and key pairs of a head."""
        first = torch.arange(self.before, self.length)
        return self.requests * int(((first // self.block + 1) * self.block).clamp(max=self.length).sum())


def report(name: str, call: Callable[[], object], pairs: int, heads: int, repeat: int) -> float:
    """Times a call and prints its line; a rival that cannot run says why."""
    try:
        taken: float = measure([call], "cuda", repeat)
    except Exception as error:
        print(f"    {name:34} failed: {str(error).splitlines()[0][:150]}")
        return float("nan")
    rate = 4 * heads * HEAD * pairs / taken / 1e12
    print(f"    {name:34} {taken * 1e6:9.1f} us   {rate:6.1f} TFLOP/s", flush=True)
    return taken


def difference(actual: Tensor, expected: Tensor) -> str:
    gap = (actual.float() - expected.float()).norm() / expected.float().norm()
    return f"{gap:.1e}"


def block_causal(work: Work, repeat: int, with_fa3: bool, with_flex: bool) -> None:
    print(
        f"{work.requests} requests of {work.rows} rows after {work.before}, blocks of {work.block}, "
        f"pages of {work.page_size}"
    )
    pairs = work.pairs()
    ours = work.whole().clone()
    report("block_causal_attention", work.whole, pairs, HEADS, repeat)
    if with_fa3:
        causal_pairs = work.requests * sum(range(work.before + 1, work.length + 1))
        report("FlashAttention 3, causal", work.fa3, causal_pairs, HEADS, repeat)
        by_block = work.fa3_by_block()
        print(f"      by block differs from ours by {difference(by_block(), ours)}")
        report("FlashAttention 3, a sequence a block", by_block, pairs, HEADS, repeat)
    if with_flex:
        call = work.flex()
        gap = difference(call().transpose(1, 2).reshape_as(ours), ours)
        report("FlexAttention", call, pairs, HEADS, repeat)
        print(f"      differs from ours by {gap}")


def bidirectional(batch: int, length: int, heads: int, kv_heads: int, repeat: int, with_fa3: bool) -> None:
    """What serves the full-attention families: every row sees every key."""
    generator = torch.Generator(device="cuda").manual_seed(length)
    query, key, value = (
        torch.randn(batch, length, n, HEAD, generator=generator, device="cuda", dtype=torch.bfloat16)
        for n in (heads, kv_heads, kv_heads)
    )
    print(f"bidirectional, {batch} x {length}, {heads} heads over {kv_heads}")
    pairs = batch * length * length
    starts = torch.arange(batch + 1, dtype=torch.int32, device="cuda") * length
    calls: dict[str, Callable[[], object]] = {}
    if with_fa3:
        flat = [x.flatten(0, 1) for x in (query, key, value)]
        calls["FlashAttention 3"] = lambda: fa3.attention(
            *flat, starts, starts[1:], length, length, SCALE, False
        )
    q, k, v = (x.transpose(1, 2).contiguous() for x in (query, key, value))
    grouped = heads != kv_heads
    calls["FlexAttention, no mask"] = lambda: FLEX(q, k, v, scale=SCALE, enable_gqa=grouped)
    calls["PyTorch scaled_dot_product_attention"] = lambda: torch.nn.functional.scaled_dot_product_attention(
        q, k, v, scale=SCALE, enable_gqa=grouped
    )
    if importlib.util.find_spec("xformers"):
        import xformers.ops as xops

        if grouped:
            five = query.unflatten(2, (kv_heads, heads // kv_heads))  # type: ignore[no-untyped-call]
            wide = [x[:, :, :, None].expand_as(five) for x in (key, value)]
            inputs = (five, *wide)
        else:
            inputs = (query, key, value)
        calls["xformers"] = lambda: xops.memory_efficient_attention(*inputs, scale=SCALE)
    for name, call in calls.items():
        report(name, call, pairs, heads, repeat)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", nargs="+", default=["prefill", "windows", "bidirectional"])
    parser.add_argument("--page-size", type=int, nargs="+", default=[16])
    parser.add_argument("--repeat", type=int, default=20)
    options = parser.parse_args()
    with_fa3 = fa3.load()
    print(machine("cuda"), "" if with_fa3 else "; no FlashAttention 3 library")
    for page_size in options.page_size:
        if "prefill" in options.only:
            for requests, rows, before, block in ((1, 4096, 0, 4), (1, 4096, 0, 32), (8, 1024, 0, 32)):
                work = Work(requests, rows, before, block, page_size)
                block_causal(work, options.repeat, with_fa3, with_flex=True)
        if "windows" in options.only:
            for requests, rows, before, block in ((1, 64, 1024, 32), (64, 8, 512, 4), (64, 64, 512, 32)):
                work = Work(requests, rows, before, block, page_size)
                block_causal(work, options.repeat, with_fa3, with_flex=False)
    if "bidirectional" in options.only:
        for batch, length, heads, kv_heads in ((1, 4096, 32, 32), (8, 256, 32, 32), (8, 256, 28, 4)):
            bidirectional(batch, length, heads, kv_heads, options.repeat, with_fa3)


if __name__ == "__main__":
    main()
