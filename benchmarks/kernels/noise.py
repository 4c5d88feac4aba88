# SPDX-License-Identifier: Apache-2.0
"""noise and timetable against the same numbers in PyTorch, in the same run.

    python benchmarks/kernels/noise.py [--device cuda] [--requests 1 64] [--width 32]

The PyTorch side is the operators' reference, on the same device. Its results are compared with ours
before anything is timed. `select` is the whole of Dream's default policy, with no noise asked for and
with it.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from harness import machine, measure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.sampling.launches import canvas
from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels.noise import STEP_BITS, noise
from vllm.v1.diffusion.kernels.timetable import timetable
from vllm.v1.diffusion.policies import get_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--width", type=int, nargs="+", default=[32, 2048])
    parser.add_argument("--repeat", type=int, default=50)
    options = parser.parse_args()
    device = torch.device(options.device)
    print(machine(options.device))
    policy = get_policy("entropy")
    for requests in options.requests:
        for width in options.width:
            plain = canvas(policy, requests, width, device)
            drawing = canvas(policy, requests, width, device, position_temperature=0.5)
            view = plain[1]
            keys = view.seed[:, None], view.position, view.step[:, None]
            wide = torch.broadcast_tensors(*keys)  # type: ignore[no-untyped-call]
            assert torch.equal(noise(*keys), reference.noise(*wide, STEP_BITS, False))  # type: ignore[call-arg]
            calls: dict[str, Callable[[], object]] = {
                "noise": lambda k=keys: noise(*k),  # type: ignore[misc]
                "noise, Gumbel": lambda k=keys: noise(*k, gumbel=True),  # type: ignore[misc]
                "PyTorch, Gumbel": lambda w=wide: reference.noise(*w, STEP_BITS, True),  # type: ignore[call-arg, misc]
                "timetable": lambda v=view: timetable(v.step, v.steps, v.values["end_time"]),  # type: ignore[misc]
                "select": lambda a=plain: policy.select(*a),  # type: ignore[misc]
                "select with noise": lambda a=drawing: policy.select(*a),  # type: ignore[misc]
            }
            taken = {name: measure([call], options.device, options.repeat) for name, call in calls.items()}
            figures = ", ".join(f"{name} {seconds * 1e6:.1f} us" for name, seconds in taken.items())
            print(f"{requests:4} x {width:4}: {figures}", flush=True)


if __name__ == "__main__":
    main()
