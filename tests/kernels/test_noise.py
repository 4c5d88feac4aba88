# SPDX-License-Identifier: Apache-2.0
"""noise against the reference, published vectors, and what policies drew before it was an operator."""

import pytest
import torch

from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels.noise import STEP_BITS, draw_offset, noise
from vllm.v1.diffusion.kernels.tolerances import TOLERANCES

Keys = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def keys(rows: int, width: int, device: torch.device, seed: int = 0) -> Keys:
    """Seeds of all 64 bits, positions and steps: ``[R, 1]``, ``[R, W]``, ``[R, 1]``."""
    generator = torch.Generator().manual_seed(seed)
    low, high = -(2**63), 2**63 - 1
    drawn = torch.randint(low, high, (rows, 1), generator=generator)
    start = torch.randint(0, 2**31, (rows, 1), generator=generator)
    step = torch.randint(0, 2**STEP_BITS, (rows, 1), generator=generator, dtype=torch.int32)
    return drawn.to(device), (start + torch.arange(width)).to(device), step.to(device)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 32), (7, 33), (64, 4096), (300, 4)])
def test_reference(device: torch.device, rows: int, width: int) -> None:
    """Uniform numbers bit for bit; Gumbel noise but for the rounding of its logarithms."""
    seed, position, step = keys(rows, width, device)
    wide = torch.broadcast_tensors(seed, position, step)  # type: ignore[no-untyped-call]
    drawn = noise(seed, position, step)
    assert drawn.dtype == torch.float64 and drawn.shape == (rows, width)
    assert torch.equal(drawn, reference.noise(*wide, STEP_BITS, False))  # type: ignore[call-arg]
    assert ((drawn > 0) & (drawn < 1)).all()
    tolerance = TOLERANCES["noise"]["gumbel"]
    torch.testing.assert_close(
        noise(seed, position, step, gumbel=True),
        reference.noise(*wide, STEP_BITS, True),  # type: ignore[call-arg]
        rtol=tolerance.relative,
        atol=tolerance.absolute,
    )


def test_the_numbers_of_earlier_releases(device: torch.device) -> None:
    """What seeded requests of earlier releases drew: made by 2d0420e's ``policies/noise.py``."""
    seed = torch.tensor([[0], [-1], [0x243F6A8885A308D3]], device=device)
    position = torch.tensor([[0, 1, 4095]], device=device).expand(3, 3)
    step = torch.tensor([[0], [3], [65535]], dtype=torch.int32, device=device)
    expected = [float.fromhex(x) for x in EARLIER.split()]
    assert noise(seed, position, step).flatten().tolist() == expected


EARLIER = """
0x1.6e739f2c00000p-3 0x1.6916061500000p-1 0x1.943f7cd600000p-2
0x1.81ab730500000p-1 0x1.94ef7f7300000p-1 0x1.cdd67dd700000p-1
0x1.2474710700000p-1 0x1.8f912e1800000p-4 0x1.c0e6c9d800000p-4
"""


def test_any_strides_and_integers(device: torch.device) -> None:
    """Views, and steps of another type, as plug-ins may have them."""
    seed, position, step = keys(5, 24, device)
    wide = torch.zeros(5, 48, dtype=torch.int64, device=device)
    wide[:, ::2] = position
    expected = noise(seed, position, step)
    assert torch.equal(noise(seed, wide[:, ::2], step.long()), expected)
    assert torch.equal(noise(seed, position.t().contiguous().t(), step), expected)
    assert torch.equal(noise(seed[2], position[2:3], step[2]), expected[2:3])
    assert noise(seed[:0], position[:0], step[:0]).shape == (0, 24)


def test_a_request_does_not_depend_on_its_batch(device: torch.device) -> None:
    seed, position, step = keys(40, 100, device)
    together = noise(seed, position, step, gumbel=True)
    for r in (0, 17, 39):
        alone = noise(seed[r : r + 1], position[r : r + 1, 30:40], step[r : r + 1], gumbel=True)
        assert torch.equal(alone, together[r : r + 1, 30:40])


def test_position_step_and_seed_count() -> None:
    """No two of a request's draws share an offset; other seeds draw other numbers."""
    position, step = torch.arange(300)[:, None], torch.arange(200, dtype=torch.int32)
    offsets = draw_offset(position, step)
    assert offsets.unique().numel() == offsets.numel()  # type: ignore[no-untyped-call]
    seeds = torch.arange(500)[:, None]
    drawn = noise(seeds, torch.zeros(500, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int32))
    assert drawn.unique().numel() == 500  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": torch.zeros(2, 3, dtype=torch.int32)}, "seed has the wrong dtype"),
        ({"position": torch.zeros(2, 3, dtype=torch.int32)}, "position has the wrong dtype"),
        ({"position": torch.zeros(6, dtype=torch.int64)}, "position must have two dimensions"),
        ({"step": torch.zeros(2, 3, dtype=torch.int64)}, "step has the wrong dtype"),
        ({"seed": torch.zeros(2, 4, dtype=torch.int64)}, r"seed must be \[2, 3\] like position"),
        ({"step_bits": 32}, "step_bits must lie in 0 ... 31, not 32"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], message: str) -> None:
    numbers = torch.zeros(2, 3, dtype=torch.int64)
    arguments = {"seed": numbers, "position": numbers, "step": numbers.int(), "step_bits": 16, "gumbel": True}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.vllm_diffusion.noise(**(arguments | change))
