# SPDX-License-Identifier: Apache-2.0
"""row_stats against the float64 reference, over dtypes, sizes and the odd rows."""

import math

import pytest
import torch

from tests.kernels.kernel_cases import check_row_stats, make_logits, row_arguments
from vllm.v1.diffusion.kernels.row_stats import row_stats

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INF = math.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "vocab"),
    [
        *[(3, 1), (5, 2), (40, 7), (33, 64), (17, 512), (9, 4096), (9, 4097), (9, 8191)],
        *[(1, 50257), (11, 50257), (3, 151936)],
    ],
)
def test_matches_reference(device: torch.device, dtype: torch.dtype, rows: int, vocab: int) -> None:
    logits = make_logits(rows, vocab, dtype).to(device)
    arguments = row_arguments(logits, [0.0, 1.0, 0.3], [1.0, 1.0, 0.5, 2.0, 0.05])
    check_row_stats(logits, arguments)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.1, 1.0, 30.0, 1000.0])
def test_flat_to_peaked(device: torch.device, scale: float) -> None:
    logits = make_logits(12, 20001, scale=scale).to(device)
    stats = check_row_stats(logits, row_arguments(logits, [0.0, 1.0]))
    if scale == 0.0:
        torch.testing.assert_close(stats.entropy, torch.full_like(stats.entropy, math.log(20001)))


def test_exponential(device: torch.device) -> None:
    """8191 equal ids below the best one: the error of one exponential is that of 1 / top1."""
    distance = torch.linspace(0, 6, 300)
    logits = -distance[:, None].repeat(1, 8192)
    logits[:, 77] = 0.0
    logits = logits.to(device)
    stats = check_row_stats(logits, row_arguments(logits))
    expected = 1 / (1 + 8191 * torch.exp(-distance.double()))
    expected[0] = 1 / 8192
    bound = 4e-7 if device.type == "cpu" else 1.5e-6  # CUDA rounds x log2(e) once more
    torch.testing.assert_close(stats.top1.cpu().double(), expected, rtol=bound, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_be_strided(device: torch.device, dtype: torch.dtype) -> None:
    wide = make_logits(10, 1009, dtype).to(device)
    logits = wide[::2, 3:1003]
    assert not logits.is_contiguous()
    arguments = row_arguments(logits, [0.0, 1.0])
    check_row_stats(logits, arguments)
    expanded = wide[:1, :1000].expand(1, 1000)
    check_row_stats(expanded, row_arguments(expanded))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", [1, 2, 5, 100])
def test_filtered_ids(device: torch.device, dtype: torch.dtype, kept: int) -> None:
    logits = make_logits(16, 9000, dtype)
    floor = logits.float().topk(kept, dim=-1).values[:, -1:]
    logits = logits.masked_fill(logits.float() < floor, -INF).to(device)
    stats = check_row_stats(logits, row_arguments(logits, [0.0, 1.0, 5.0], [1.0, 0.7]))
    assert (logits.gather(1, stats.sample[:, None]) > -INF).all()
    if kept == 1:
        certain = stats.top1 == 1  # all but rows where a tie was cut
        assert certain.any()
        assert (stats.top2[certain] == 0).all()
        assert (stats.entropy[certain] < 1e-25).all()


@pytest.mark.parametrize("places", [(2, 5), (0, 4095), (4095, 4096), (3, 9999), (7000, 7001)])
def test_ties_go_to_the_lowest_id(device: torch.device, places: tuple[int, int]) -> None:
    logits = make_logits(2, 10000)
    logits[:, list(places)] = 50.0
    logits = logits.to(device)
    stats = check_row_stats(logits, row_arguments(logits))
    assert stats.sample.tolist() == [places[0]] * 2
    assert torch.equal(stats.top1, stats.top2)


def test_a_tie_with_the_banned_id(device: torch.device) -> None:
    logits = make_logits(2, 10000)
    logits[:, [5000, 5001, 9000]] = 50.0
    logits = logits.to(device)
    stats = check_row_stats(logits, row_arguments(logits), banned=5000)
    assert stats.sample.tolist() == [5001] * 2


def test_signed_zeros_tie(device: torch.device) -> None:
    logits = torch.full((1, 100), -1.0, device=device)
    logits[0, 10], logits[0, 20] = -0.0, 0.0
    assert check_row_stats(logits, row_arguments(logits)).sample.item() == 10


@pytest.mark.parametrize("banned", [0, 1, 63, 5000, 9999])
def test_banned_id_stays_in_the_normaliser(device: torch.device, banned: int) -> None:
    logits = make_logits(20, 10000)
    logits[::2, banned] = 40.0  # by far the highest, in every other row
    logits = logits.to(device)
    arguments = row_arguments(logits, [1.0, 1.0, 0.0, 0.0])
    stats = check_row_stats(logits, arguments, banned=banned)
    assert (stats.sample != banned).all()
    assert (stats.top1[::2] < 1e-6).all()


def test_banned_is_all_there_is(device: torch.device) -> None:
    logits = torch.full((2, 50), -INF, device=device)
    logits[:, 0] = 3.0
    stats = check_row_stats(logits, row_arguments(logits, [0.0, 1.0]), banned=0)
    assert stats.sample.tolist() == [1, 1]
    assert stats.top1.tolist() == [0.0, 0.0]
    assert stats.lse.tolist() == [3.0, 3.0]


@pytest.mark.parametrize("vocab", [7, 64, 9001])
@pytest.mark.parametrize("banned", [-1, 0, 5])
def test_rows_without_a_distribution(device: torch.device, vocab: int, banned: int) -> None:
    logits = make_logits(9, vocab)
    logits[0, 3] = math.nan
    logits[1, vocab - 1] = math.nan
    logits[2, :] = math.nan
    logits[3, 4] = INF
    logits[4, :] = INF
    logits[5, :] = -INF
    logits[6, :] = -INF
    logits[6, vocab - 1] = math.nan
    logits = logits.to(device)
    stats = check_row_stats(logits, row_arguments(logits, [0.0, 1.0]), banned=banned)
    lowest = 1 if banned == 0 else 0
    assert stats.sample[:7].tolist() == [lowest] * 7
    assert stats.lse[:5].isnan().all()
    assert stats.lse[5] == -INF
    assert stats.sample_prob[:7].tolist() == [0.0] * 7


def test_bad_stat_temperature_marks_the_row(device: torch.device) -> None:
    logits = make_logits(5, 300).to(device)
    arguments = row_arguments(logits, 1.0, [0.0, -1.0, math.nan, INF, 1.0])
    stats = check_row_stats(logits, arguments)
    assert stats.lse.isnan().tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("temperature", [1e-40, 1e-6, 1e6, INF, -1.0, math.nan])
def test_extreme_temperatures(device: torch.device, temperature: float) -> None:
    logits = make_logits(6, 5000).to(device)
    stats = check_row_stats(logits, row_arguments(logits, temperature))
    if not temperature > 1e-5:
        assert torch.equal(stats.sample, logits.argmax(-1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_magnitudes(device: torch.device, dtype: torch.dtype) -> None:
    logits = make_logits(6, 5000)
    logits[:2] *= 1e3
    logits[2:4] += 1e4
    logits[4] -= 1e4
    logits[5, 7] = -torch.finfo(dtype).max
    logits = logits.to(dtype).to(device)
    check_row_stats(logits, row_arguments(logits, [0.0, 1.0]))


def test_inactive_rows_are_not_read(device: torch.device) -> None:
    logits = make_logits(12, 6000).to(device)
    arguments = row_arguments(logits, [0.0, 1.0])
    active = torch.tensor([True, False, False, True] * 3, device=device)
    every = row_stats(logits, **arguments)
    logits[~active] = math.nan
    stats = check_row_stats(logits, arguments, active=active)
    for name, value in stats._asdict().items():
        assert torch.equal(value[active], getattr(every, name)[active]), name
        rest = -1 if name == "sample" else 0
        assert (value[~active] == rest).all(), name
    none = check_row_stats(logits, arguments, active=torch.zeros_like(active))
    assert none.sample.tolist() == [-1] * 12


def test_no_rows(device: torch.device) -> None:
    logits = torch.empty(0, 100, device=device)
    stats = row_stats(logits, **row_arguments(logits))
    assert all(x.shape == (0,) for x in stats)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(4, 8, dtype=torch.float64)}, "float32, float16 or bfloat16"),
        ({"logits": torch.zeros(4, 8, 2)}, "two dimensions"),
        ({"logits": torch.zeros(8, 4).t()}, "contiguous"),
        ({"logits": torch.zeros(1, 8).expand(4, 8)}, "overlap"),
        ({"temperature": torch.zeros(3)}, "temperature must have 4 entries"),
        ({"temperature": torch.zeros(4, dtype=torch.float64)}, "temperature has the wrong dtype"),
        ({"seed": torch.zeros(4, dtype=torch.int32)}, "seed has the wrong dtype"),
        ({"offset": torch.zeros(8, dtype=torch.int64)[::2]}, "offset must be contiguous"),
        ({"active": torch.ones(5, dtype=torch.bool)}, "active must have 4 entries"),
        ({"banned": 8}, "banned must be -1 or an id below 8, not 8"),
        ({"banned": -2}, "banned must be -1"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], message: str) -> None:
    logits = torch.zeros(4, 8)
    arguments: dict[str, object] = {"logits": logits, **row_arguments(logits), **change}
    with pytest.raises(RuntimeError, match=message):
        row_stats(**arguments)  # type: ignore[arg-type]
