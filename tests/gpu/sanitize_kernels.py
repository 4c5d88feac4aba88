# SPDX-License-Identifier: Apache-2.0
"""A few calls of every kernel, small enough for compute-sanitizer.

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tests/gpu/sanitize_kernels.py
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.kernels.attention_cases import check_attention, make_batch
from tests.kernels.eight_bit_cases import check_eight_bits, make_eight_bit_case
from tests.kernels.kernel_cases import check_row_stats, make_logits, row_arguments
from tests.kernels.linear_cases import check, make_case
from tests.kernels.rope_cases import check_eight_bit_cache, check_rope
from tests.kernels.unmask_cases import random_state
from vllm.v1.diffusion.kernels import skinny_linear as linear_ops
from vllm.v1.diffusion.kernels.merge_row_stats import merge_row_stats
from vllm.v1.diffusion.kernels.noise import noise
from vllm.v1.diffusion.kernels.timetable import timetable
from vllm.v1.diffusion.kernels.unmask import unmask

for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for rows, vocab in ((3, 7), (2, 8193), (2, 20001)):
        logits = make_logits(rows, vocab, dtype).cuda()
        active = torch.tensor([True] * (rows - 1) + [False], device="cuda")
        check_row_stats(logits, row_arguments(logits, [0.0, 1.0]), banned=5)
        check_row_stats(logits, row_arguments(logits, 0.7), active=active)
        check_row_stats(logits[:, 1:], row_arguments(logits[:, 1:], 0.7))
for seed in range(8):
    unmask(**random_state(seed).to(torch.device("cuda")).arguments())
for width in (1024, 2500):
    unmask(**random_state(0, width=width, requests=2).to(torch.device("cuda")).arguments())
for dtype in (torch.float16, torch.bfloat16):
    for head in (64, 80, 96, 128):
        requests = [(37, 0, 4), (0, 0, 4), (24, 100, 6), (64, 32, 32)]
        batch = make_batch(requests, heads=7, kv_heads=1, head=head, dtype=dtype)
        check_attention(batch.to(torch.device("cuda")))
for head in (20, 128, 256):
    check_rope(5, 3, 2, head, torch.bfloat16, norm=head != 20)
    check_rope(5, 3, 2, head, torch.bfloat16, rotary=head // 8 * 4)
    check_eight_bit_cache(5, 3, 2, head, torch.bfloat16, torch.uint8, head // 8 * 4)
for columns in (8, 264, 12288):
    linear_ops.quantize_rows(torch.randn(3, 2 * columns, device="cuda").half(), gated=True)
    linear_ops.quantize_rows(torch.randn(3, columns, device="cuda").bfloat16())
for gumbel in (False, True):
    position = torch.arange(3 * 77, device="cuda").view(3, 77)
    noise(position[:, :1], position[:, 7:], position[:, :1].int(), gumbel)
merge_row_stats(torch.rand(3, 130, 6, device="cuda"), torch.arange(130, device="cuda") % 2 == 0, 5)
step = torch.arange(130, dtype=torch.int32, device="cuda")
timetable(step, step + 1, step / 200)
if torch.cuda.get_device_capability() == (9, 0):
    x = torch.randn(3, 264, device="cuda").half()
    linear_ops.add_rms_norm(x, x.clone(), x[0].clone(), 1e-6)
    linear_ops.add_rms_norm(x, x.clone(), x[0].clone(), 1e-6, quantize=True)
    for tokens in (1, 16, 29, 64):
        for gated in (False, True):
            check(make_case(tokens, 1040, 1088, gated=gated, bias=True))
            check(make_case(tokens, 64, 2048, dtype=torch.float16, gated=gated))
            check_eight_bits(make_eight_bit_case(tokens, 1040, 1152, gated=gated, per_channel=True))
torch.cuda.synchronize()
print("sanitized calls done")
