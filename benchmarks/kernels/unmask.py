# SPDX-License-Identifier: Apache-2.0
"""unmask against the same step in batched PyTorch, in the same run.

    python benchmarks/kernels/unmask.py [--device cuda] [--requests 1 64] [--width 32]

All requests have a full canvas of masks and the rule STATIC (a quarter of it per step); seeded. The
PyTorch side handles that one rule for equally long requests; the kernel takes any mixture.
"""

import argparse
from collections.abc import Callable

import torch
from harness import machine, measure
from torch import Tensor

from vllm.v1.diffusion.kernels.rules import Rule
from vllm.v1.diffusion.kernels.unmask import unmask


class Step:
    """One call's tensors; each call starts from a canvas of masks."""

    def __init__(self, requests: int, width: int, device: str) -> None:
        generator = torch.Generator().manual_seed(requests)
        rows = requests * width

        def each(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((requests,), value, dtype=dtype, device=device)

        self.width = width
        self.token = torch.randint(1000, (rows,), generator=generator).to(device)
        self.confidence = torch.rand(rows, generator=generator).to(device)
        self.entropy = torch.rand(rows, generator=generator).to(device)
        self.row_start = torch.arange(0, rows + 1, width, dtype=torch.int32, device=device)
        self.slots = torch.randperm(requests, generator=generator).to(device)
        self.canvas = torch.zeros(requests, width, dtype=torch.int64, device=device)
        self.masked = torch.ones(requests, width, dtype=torch.bool, device=device)
        self.unmasked_at = torch.zeros(requests, width, dtype=torch.int32, device=device)
        self.step = each(0, torch.int32)
        self.settings = (
            each(Rule.STATIC, torch.int32),
            each(4, torch.int32),
            each(width, torch.int32),
            each(0.9, torch.float32),
        )

    def reset(self) -> None:
        self.masked.fill_(True)
        self.step.zero_()

    def kernel(self) -> Tensor:
        self.reset()
        return unmask(
            self.token,
            self.confidence,
            self.entropy,
            None,
            self.row_start,
            self.slots,
            self.canvas,
            self.masked,
            self.unmasked_at,
            self.step,
            *self.settings,
        )

    def pytorch(self) -> Tensor:
        self.reset()
        masked = self.masked[self.slots]
        confidence = self.confidence.view(-1, self.width).masked_fill(~masked, -torch.inf)
        chosen = confidence.topk(max(1, self.width // 4), dim=-1).indices
        picked = torch.zeros_like(masked).scatter_(1, chosen, True) & masked
        token = self.token.view(-1, self.width)
        self.canvas[self.slots] = torch.where(picked, token, self.canvas[self.slots])
        step = self.step[self.slots, None]
        unmasked = self.unmasked_at[self.slots]
        self.unmasked_at[self.slots] = torch.where(picked, step.expand_as(unmasked), unmasked)
        self.masked[self.slots] = masked & ~picked
        self.step[self.slots] += masked.any(-1).int()
        return (masked & ~picked).sum(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=100)
    options = parser.parse_args()
    device: str = options.device
    print(machine(device))
    for requests in options.requests:
        step = Step(requests, options.width, device)
        sides: dict[str, Callable[[], object]] = {
            "unmask": step.kernel,
            "PyTorch": step.pytorch,
            "reset": step.reset,
        }
        taken = {name: measure([call], device, options.repeat) for name, call in sides.items()}
        net = {name: max(1e-9, taken[name] - taken["reset"]) for name in ("unmask", "PyTorch")}
        print(
            f"{requests:5} requests x {options.width}: unmask {net['unmask'] * 1e6:7.1f} us, "
            f"PyTorch {net['PyTorch'] * 1e6:8.1f} us = {net['PyTorch'] / net['unmask']:.1f} x unmask"
        )


if __name__ == "__main__":
    main()
