"""What the sampling report makes of its lines."""

import pytest

from benchmarks.accuracy.methods import chosen
from benchmarks.accuracy.report import best, figure, logged_points, points, table


def line(method: str, setting: str, task: str, right: int, forwards: int) -> dict[str, object]:
    counts = {"problems": 100, "right": right, "tokens": 800, "forwards": forwards, "seconds": 2.0}
    return {"method": method, "setting": setting, "task": task, "batch": 1} | counts


LINES = [
    line("static", "steps 32", "story", 98, 800),
    line("static", "steps 32", "sudoku", 100, 800),
    line("static", "steps 8", "story", 60, 200),
    line("static", "steps 8", "sudoku", 90, 200),
    line("dynamic", "threshold 0.9", "story", 98, 400),
    line("dynamic", "threshold 0.9", "sudoku", 99, 100),
    line("dynamic", "threshold 0.5", "story", 80, 200),
    line("dynamic", "threshold 0.5", "sudoku", 99, 100),
    line("p2", "steps 4", "story", 10, 100),
    line("p2", "steps 4", "sudoku", 10, 100),
]


def test_the_best_setting_is_the_fastest_that_loses_little() -> None:
    found = {method: setting for method, (setting, _) in best(LINES).items()}
    assert found == {"static": "steps 32", "dynamic": "threshold 0.9"}
    assert {m: s for m, (s, _) in best(LINES, loss=15).items()}["dynamic"] == "threshold 0.5"


def test_the_table_has_a_row_a_setting() -> None:
    rows = table(LINES, speed=True).splitlines()
    assert rows[0] == "| decoding | story | sudoku | all | tokens/s |"
    assert rows[4] == "| `dynamic`, threshold 0.9 | 98.0 % (2.0) | 99.0 % (8.0) | 98.5 % (3.2) | 400 |"
    assert len(rows) == 2 + len(LINES) / 2


def test_the_figure_has_a_panel_a_task_and_a_curve_a_method() -> None:
    drawn = figure(points(LINES), ["static", "dynamic"])
    assert drawn.count("<polyline") == 4
    assert drawn.count("right answers") == 2
    logged = logged_points([{"step": 1}, {"decoding": "static, 8 steps", "held_out": {"story": [0.5, 3.0]}}])
    assert logged == {"story": {"static": [(3.0, 50.0)]}}


def test_every_setting_is_one_that_a_request_may_have() -> None:
    methods = chosen([], 32)
    assert "multi_block" not in methods and "multi_block" in chosen([], 32, "multi_block_diffusion")
    with pytest.raises(ValueError, match="needs --loop multi_block_diffusion"):
        chosen(["multi_block"], 32)
    assert all(method.requests() for method in methods.values())
    assert "steps 32" in methods["static"].settings
    with pytest.raises(ValueError, match="method is 'none'"):
        chosen(["none"], 32)
