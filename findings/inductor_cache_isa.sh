#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# torch 2.13.0: a cache of compiled functions filled on a CPU with AVX-512 gives wrong numbers on one with AVX2, and
# says nothing.
#
# The key of inductor's graph cache holds no instruction set. What it stores is C++ whose loop steps by 16 floats for
# AVX-512; compiled again for AVX2, a step writes 8 of them. The rest of the output is what was in memory.
# ATEN_CPU_CAPABILITY, torch's own limit of instruction sets, makes one machine both. The same happens to a cache folder
# that machines share, or that an image carries from where it was built to where it runs.
#
# Exits with 0 while this is so, with 1 once the second process compiles anew. Needs a CPU with AVX-512 and g++.
set -euo pipefail

grep -q avx512f /proc/cpuinfo || {
    echo "this CPU has no AVX-512: nothing to show here" >&2
    exit 2
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy setuptools torch==2.13.0

cat > "$work/function.py" <<'PYTHON'
import torch
from torch._dynamo.utils import counters


def product(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x) * 2


x = torch.linspace(1, 2, 1024)
wrong = (torch.compile(product)(x) - product(x)).abs() > 1e-3
hits = counters["inductor"]["fxgraph_cache_hit"]
where = sorted({int(i) % 16 for i in wrong.nonzero()})
capability = torch.backends.cpu.get_cpu_capability()
print(f"torch {torch.__version__}, {capability}: {hits} found in the cache, {int(wrong.sum())} of 1024 wrong,"
      f" at positions {where} of each 16")
raise SystemExit(0 if bool(wrong.any()) else 3)
PYTHON

# function.py ends with 3 where every number is right.
run() {
    TORCHINDUCTOR_CACHE_DIR="$work/$1" ATEN_CPU_CAPABILITY=$2 "$work/venv/bin/python" "$work/function.py" && return
    [ $? = 3 ] && right=yes
}

for case in "own avx2" "shared avx512" "shared avx2"; do
    right=
    # shellcheck disable=SC2086
    run $case
done
[ -z "$right" ]
