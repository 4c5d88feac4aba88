# SPDX-License-Identifier: Apache-2.0
"""On the CPU: threads, instruction sets and the OpenMP runtime change nothing."""

import pickle
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.kernel_cases import assert_stats, make_logits, row_arguments
from tests.kernels.limited_cpus import cpu_flags, environment
from vllm.v1.diffusion.kernels.row_stats import row_stats

CHILD = """
import pickle, sys, torch
from pathlib import Path
from vllm.v1.diffusion.kernels.row_stats import row_stats
cases = pickle.loads(Path(sys.argv[1]).read_bytes())
results = [tuple(row_stats(logits, **arguments)) for logits, arguments in cases]
Path(sys.argv[2]).write_bytes(pickle.dumps(results))
"""
RUNTIMES = """
import sys, torch
torch.ones(4096, 64).softmax(-1)
def runtimes():
    names = {line.split()[-1] for line in open("/proc/self/maps")}
    return {x for x in names if "gomp" in x or "iomp" in x or "libomp" in x}
before = runtimes()
from vllm.v1.diffusion.kernels.row_stats import row_stats
x = torch.zeros(64, 9000)
row_stats(x, torch.ones(64), torch.ones(64), *[torch.ones(64, dtype=torch.int64)] * 2)
assert before and runtimes() == before, (before, runtimes())
"""


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_thread_count_changes_nothing(rows: int) -> None:
    logits = make_logits(rows, 30000, torch.bfloat16, scale=2.0)
    arguments = row_arguments(logits, [1.0, 0.0, 0.5], [1.0, 0.5])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(row_stats(logits, **arguments, banned=17))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name in other._fields:
            assert torch.equal(getattr(other, name), getattr(results[0], name)), name


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 variants")
@pytest.mark.parametrize(
    ("isa", "needs"),
    [("baseline", set()), ("avx2", {"avx2", "fma", "f16c"}), ("avx512", {"avx512bw", "avx512vl"})],
)
def test_instruction_sets_agree(isa: str, needs: set[str], tmp_path: Path) -> None:
    """Every variant gives the same ids, and probabilities within the tolerance of each other."""
    if not needs <= cpu_flags():
        pytest.skip(f"this machine has no {isa}")
    cases = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for rows, vocab in ((5, 7), (50, 513), (6, 50257)):
            logits = make_logits(rows, vocab, dtype, scale=2.0)
            logits[0, : vocab // 2] = -torch.inf
            logits[1, :4] = torch.tensor([6e-8, 1e-7, -3e-5, 2e-6]).to(dtype)  # half's subnormals
            logits[2, 0], logits[3, 1] = torch.nan, torch.inf
            cases.append((logits, row_arguments(logits, [0.0, 1.0, 0.5], [1.0, 0.3])))
    (tmp_path / "in").write_bytes(pickle.dumps(cases))
    subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "in"), str(tmp_path / "out")],
        env=environment(VLLM_DIFFUSION_CPU_ISA=isa),
        check=True,
        timeout=300,
    )
    results = pickle.loads((tmp_path / "out").read_bytes())
    for (logits, arguments), expected in zip(cases, results, strict=True):
        assert_stats(row_stats(logits, **arguments), expected, note=isa)


def test_unknown_instruction_set_is_refused(tmp_path: Path) -> None:
    logits = make_logits(1, 8)
    (tmp_path / "in").write_bytes(pickle.dumps([(logits, row_arguments(logits))]))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "in"), str(tmp_path / "out")],
        env=environment(VLLM_DIFFUSION_CPU_ISA="avx1024"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert "VLLM_DIFFUSION_CPU_ISA=avx1024 cannot be used on this machine" in done.stderr
    assert "baseline" in done.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_no_second_openmp_runtime() -> None:
    subprocess.run([sys.executable, "-c", RUNTIMES], env=environment(), check=True, timeout=300)
