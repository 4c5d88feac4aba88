# SPDX-License-Identifier: Apache-2.0
"""timetable against ``torch.linspace`` itself: equal bit for bit."""

import pytest
import torch

from vllm.v1.diffusion.kernels import reference
from vllm.v1.diffusion.kernels.timetable import timetable


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.123, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 100, 511, 4096])
def test_linspace(device: torch.device, eps: float, steps: int) -> None:
    """Every step of a timetable."""
    step = torch.arange(steps, dtype=torch.int32, device=device)
    asked, end = torch.full_like(step, steps), torch.full((steps,), eps, device=device)
    expected = reference.timetable(step, asked, end)
    assert timetable(step, asked, end).nan_to_num().tolist() == expected.nan_to_num().tolist()


def test_requests_of_all_kinds(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(1)
    steps = torch.randint(1, 2000, (300,), generator=generator, dtype=torch.int32)
    step = (torch.rand(300, generator=generator) * steps).int()
    eps = torch.rand(300, generator=generator)
    got = timetable(step.to(device), steps.to(device), eps.to(device))
    assert torch.equal(got.cpu(), reference.timetable(step, steps, eps))


def test_no_requests(device: torch.device) -> None:
    none = torch.zeros(0, dtype=torch.int32, device=device)
    assert timetable(none, none, none.float()).shape == (0,)


@pytest.mark.parametrize(
    ("position", "wrong", "message"),
    [
        (0, torch.zeros(2), "step has the wrong dtype"),
        (1, torch.zeros(3, dtype=torch.int32), "steps must have 2 entries"),
        (2, torch.zeros(2, dtype=torch.float64), "eps has the wrong dtype"),
    ],
)
def test_bad_arguments_are_refused(position: int, wrong: torch.Tensor, message: str) -> None:
    arguments = [torch.zeros(2, dtype=torch.int32), torch.ones(2, dtype=torch.int32), torch.zeros(2)]
    arguments[position] = wrong
    with pytest.raises(RuntimeError, match=message):
        timetable(*arguments)
