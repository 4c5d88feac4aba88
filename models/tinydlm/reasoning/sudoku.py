"""6 x 6 Sudoku: boxes of 2 rows and 3 columns, every puzzle solvable by singles, hence uniquely."""

from functools import cache
from random import Random

from .problem import Problem, is_reserved

SIDE, CELLS = 6, 36
MIN_EMPTY, MAX_EMPTY = 6, 18
BASE_GRIDS = 4000
"""Solved grids that symmetries make all others of."""

Grid = list[int]


def _units() -> list[list[int]]:
    rows = [[SIDE * r + c for c in range(SIDE)] for r in range(SIDE)]
    columns = [[SIDE * r + c for r in range(SIDE)] for c in range(SIDE)]
    boxes = [[SIDE * (2 * (b // 2) + i // 3) + 3 * (b % 2) + i % 3 for i in range(SIDE)] for b in range(SIDE)]
    return rows + columns + boxes


UNITS = _units()
OWN_UNITS = [[unit for unit in range(3 * SIDE) if cell in UNITS[unit]] for cell in range(CELLS)]


def is_solved(grid: Grid) -> bool:
    """Says whether 36 cells hold 1 to 6 once in each row, column and box."""
    wanted = set(range(1, SIDE + 1))
    return len(grid) == CELLS and all({grid[cell] for cell in unit} == wanted for unit in UNITS)


def singles(puzzle: Grid) -> Grid | None:
    """Solves a puzzle (0 is empty) by naked and hidden singles; None where they do not suffice."""
    grid = list(puzzle)
    used = [0] * (3 * SIDE)
    for cell, value in enumerate(grid):
        if value:
            for unit in OWN_UNITS[cell]:
                used[unit] |= 1 << value
    empty = {cell for cell, value in enumerate(grid) if not value}

    def place(cell: int, value: int) -> None:
        grid[cell] = value
        empty.discard(cell)
        for own in OWN_UNITS[cell]:
            used[own] |= 1 << value

    while empty:
        before = len(empty)
        options = {}
        for cell in sorted(empty):
            a, b, c = OWN_UNITS[cell]
            free = 0b1111110 & ~(used[a] | used[b] | used[c])
            if free and not free & (free - 1):
                place(cell, free.bit_length() - 1)
            else:
                options[cell] = free
        if len(empty) == before:
            for line in UNITS:
                open_cells = [cell for cell in line if cell in empty]
                for value in range(1, SIDE + 1):
                    homes = [cell for cell in open_cells if options[cell] >> value & 1]
                    if len(homes) == 1 and homes[0] in empty:
                        fits = all(not used[u] >> value & 1 for u in OWN_UNITS[homes[0]])
                        if fits:
                            place(homes[0], value)
            if len(empty) == before:
                return None
    return grid


def search(rng: Random) -> Grid:
    """A random solved grid by backtracking."""
    grid = [0] * CELLS

    def fill(cell: int) -> bool:
        if cell == CELLS:
            return True
        taken = {grid[other] for unit in OWN_UNITS[cell] for other in UNITS[unit]}
        values = [value for value in range(1, SIDE + 1) if value not in taken]
        rng.shuffle(values)
        for value in values:
            grid[cell] = value
            if fill(cell + 1):
                return True
        grid[cell] = 0
        return False

    fill(0)
    return grid


@cache
def base_grids(seed: int, count: int = BASE_GRIDS) -> tuple[Grid, ...]:
    """Solved grids to make others of."""
    rng = Random(f"sudoku base {seed}")
    return tuple(search(rng) for _ in range(count))


def shuffled(grid: Grid, rng: Random) -> Grid:
    """The same grid under a random symmetry: digits, bands, rows, stacks and columns change places."""

    def lines(groups: int, size: int) -> list[int]:
        return [
            size * g + i for g in rng.sample(range(groups), groups) for i in rng.sample(range(size), size)
        ]

    digits = [0, *rng.sample(range(1, SIDE + 1), SIDE)]
    rows, columns = lines(3, 2), lines(2, 3)
    return [digits[grid[SIDE * r + c]] for r in rows for c in columns]


def write(grid: Grid) -> str:
    """Rows of digits with a slash between them."""
    return "/".join("".join(map(str, grid[row : row + SIDE])) for row in range(0, CELLS, SIDE))


def read(text: str) -> Grid | None:
    """Reads rows of digits back; None where the text is no grid."""
    rows = text.split("/")
    if len(rows) != SIDE or any(len(row) != SIDE or not set(row) <= set("0123456") for row in rows):
        return None
    return [int(char) for row in rows for char in row]


def make(rng: Random, reserved: bool) -> Problem:
    """Draws a puzzle, reserved or not; its solution is the only right answer."""
    grids = base_grids(0)
    while True:
        solution = shuffled(rng.choice(grids), rng)
        puzzle = list(solution)
        for cell in rng.sample(range(CELLS), rng.randint(MIN_EMPTY, MAX_EMPTY)):
            puzzle[cell] = 0
        prompt = f"Sudoku:\n{write(puzzle)}\n"
        # The cheaper test comes first, since few puzzles are reserved.
        if is_reserved(prompt) == reserved and singles(puzzle) == solution:
            break

    def is_right(text: str) -> bool:
        grid = read(text)
        if grid is None or not is_solved(grid):
            return False
        return all(given in (0, cell) for given, cell in zip(puzzle, grid, strict=True))

    return Problem("sudoku", prompt, write(solution), is_right)
