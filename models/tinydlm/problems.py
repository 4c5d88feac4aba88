"""Problems one at a time in plain Python: held-out samples and the checkers of answers.

Nothing here is shared with the vectorised generators of ``tasks``, except the list of Sudoku grids
and the rule that reserves puzzles, so that a mistake in one of the two shows.
"""

import itertools
import random

TASKS = ("sudoku", "add", "sort", "reverse")
MAX_DIGITS = 4
MAX_SYMBOLS = 12
MIN_EMPTY = 4
MAX_EMPTY = 12
RESERVED_MODULUS = 97

Grid = tuple[int, ...]


def is_solved(grid: Grid) -> bool:
    """Says whether 16 cells, row by row, hold 1 to 4 once in each row, column and 2x2 box."""
    rows = [[4 * r + c for c in range(4)] for r in range(4)]
    columns = [[4 * r + c for r in range(4)] for c in range(4)]
    boxes = [[8 * (b // 2) + 2 * (b % 2) + 4 * (i // 2) + i % 2 for i in range(4)] for b in range(4)]
    groups = rows + columns + boxes
    wanted = {1, 2, 3, 4}
    return all({grid[cell] for cell in group} == wanted for group in groups)


def all_grids() -> list[Grid]:
    """Lists the 288 solved 4x4 grids in lexicographic order."""
    rows = list(itertools.permutations((1, 2, 3, 4)))
    grids = []
    for first, second in itertools.product(rows, repeat=2):
        if set(first[:2]) & set(second[:2]):
            continue
        for third in rows:
            fourth = tuple(10 - first[c] - second[c] - third[c] for c in range(4))
            grid = (*first, *second, *third, *fourth)
            if is_solved(grid):
                grids.append(grid)
    return sorted(grids)


def is_reserved(puzzle: Grid) -> bool:
    """Says whether a puzzle (0 is empty) is kept out of training: about one in 97 is."""
    number: int = sum(cell * 5**index for index, cell in enumerate(puzzle))
    return number % RESERVED_MODULUS == 0


def _lines(cells: Grid) -> str:
    return "/".join("".join(map(str, cells[row : row + 4])) for row in range(0, 16, 4))


def _cells(lines: str, low: int) -> Grid | None:
    rows = lines.split("/")
    allowed = set("01234"[low:])
    if len(rows) != 4 or any(len(row) != 4 or not set(row) <= allowed for row in rows):
        return None
    return tuple(int(char) for row in rows for char in row)


def sample(task: str, rng: random.Random, grids: list[Grid]) -> str:
    """Draws a prompt of ``task``; lengths are uniform, and so are values given the length."""
    if task == "sudoku":
        cells = list(rng.choice(grids))
        for index in rng.sample(range(16), rng.randint(MIN_EMPTY, MAX_EMPTY)):
            cells[index] = 0
        return f"sudoku {_lines(tuple(cells))}="
    if task == "add":
        digits = [rng.randint(1, MAX_DIGITS) for _ in range(2)]
        left, right = (rng.randrange(10 ** (n - 1) if n > 1 else 0, 10**n) for n in digits)
        return f"add {left}+{right}="
    length = rng.randint(1, MAX_SYMBOLS)
    if task == "sort":
        return f"sort {''.join(rng.choices('0123456789', k=length))}="
    return f"reverse {''.join(rng.choices('abcdefghijklmnopqrstuvwxyz', k=length))}="


def held_out(task: str, count: int, seed: int, reserved_only: bool = False) -> list[str]:
    """Draws ``count`` prompts of a task from a seed of its own.

    Args:
        task: one of ``TASKS``.
        count: how many prompts.
        seed: seed of the draw.
        reserved_only: keep only Sudoku puzzles that training never shows.
    """
    rng = random.Random(f"{task}/{seed}")
    grids = all_grids()
    prompts: list[str] = []
    while len(prompts) < count:
        prompt = sample(task, rng, grids)
        puzzle = _cells(prompt[7:-1], 0) if task == "sudoku" else None
        if not reserved_only or (puzzle is not None and is_reserved(puzzle)):
            prompts.append(prompt)
    return prompts


def check(prompt: str, answer: str) -> bool:
    """Says whether ``answer`` (text before the end token) solves ``prompt``.

    Any valid completion of a Sudoku is right. Raises ``ValueError`` for a prompt of no known task.
    """
    task, _, rest = prompt.partition(" ")
    if not rest.endswith("="):
        raise ValueError(f"not a prompt: {prompt!r}")
    body = rest[:-1]
    if task == "add":
        left, _, right = body.partition("+")
        return answer == str(int(left) + int(right))
    if task == "sort":
        return answer == "".join(sorted(body))
    if task == "reverse":
        return answer == body[::-1]
    puzzle, solution = _cells(body, 0), _cells(answer, 1)
    if task != "sudoku" or puzzle is None:
        raise ValueError(f"not a prompt: {prompt!r}")
    if solution is None or not is_solved(solution):
        return False
    return all(given in (0, cell) for given, cell in zip(puzzle, solution, strict=True))
