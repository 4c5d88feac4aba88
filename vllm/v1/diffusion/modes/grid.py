# SPDX-License-Identifier: Apache-2.0
"""Where a request's blocks begin and end; shared by scheduler and worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

NO_LIMIT = 2**62
"""A position that no canvas reaches."""


def whole_blocks(grid: BlockGrid, window_end: int, known: int) -> int:
    """Whole blocks of tokens that were known *before* the step are final.

    A block that held masks is not, even if the step unmasked it: its tokens were not in the
    window.
    """
    return grid.begin(min(window_end, known))


def all_but_the_last(grid: BlockGrid, window_end: int, known: int) -> int:
    """Whole blocks but for their last token, whose row predicts the next block's first one."""
    return max(0, whole_blocks(grid, window_end, known) - 1)


def nothing(grid: BlockGrid, window_end: int, known: int) -> int:
    """No position is final before the request ends."""
    return 0


def known_tokens(grid: BlockGrid, window_end: int, known: int) -> int:
    """Every known token is final: it saw the tokens before it only."""
    return min(window_end, known)


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """One request's blocks: the numbers of both processes come from here.

    Attributes:
        block_length: Tokens per block.
        origin: A position at which a block begins. Blocks follow each other in both directions,
            so the first one of a prompt may be short.
        limit: Position behind the last block, which is cut there.
        open_blocks: Blocks that are denoised at the same time.
        final: What a window leaves computed, see ``computed``.
        canvas: Tokens of a canvas, a whole number of blocks; None where the answer is one.
        slides: Whether the open block begins at the first unknown position, wherever that is.
    """

    block_length: int
    origin: int = 0
    limit: int = NO_LIMIT
    open_blocks: int = 1
    final: Callable[[BlockGrid, int, int], int] = whole_blocks
    canvas: int | None = None
    slides: bool = False

    def begin(self, position: int) -> int:
        """First position of the block that holds ``position``."""
        if self.slides:
            return position
        return max(0, position - (position - self.origin) % self.block_length)

    def end(self, position: int) -> int:
        """Position behind the block that holds ``position``."""
        before = 0 if self.slides else (position - self.origin) % self.block_length
        return min(position - before + self.block_length, self.limit)

    def canvas_begin(self, position: int) -> int:
        """First position of the canvas that holds ``position``, which is behind the prompt."""
        return position - (position - self.origin) % self.canvas if self.canvas else self.origin

    def canvas_end(self, position: int) -> int:
        """Position behind the canvas that holds ``position``."""
        return min(self.canvas_begin(position) + self.canvas, self.limit) if self.canvas else self.limit

    def reach(self, position: int) -> int:
        """Position behind the blocks that are open when ``position`` is the first unknown one."""
        return min(self.end(position) + (self.open_blocks - 1) * self.block_length, self.limit)

    def starts_block(self, position: int) -> bool:
        """Whether a block begins at ``position``."""
        return self.begin(position) == position

    def computed(self, window_end: int, known: int) -> int:
        """Positions whose keys and values are final after a window was run.

        Args:
            window_end: End of the window.
            known: Tokens known when the step began (prompt and output).
        """
        return self.final(self, window_end, known)


@dataclass(frozen=True)
class BlockRule:
    """How the blocks of every request of a mode lie.

    Attributes:
        from_prompt: Whether blocks are counted from the prompt's end; else from position 0.
        cut: Whether the answer ends at ``max_tokens``, inside a block if need be; else the last
            block is denoised as a whole and upstream cuts what it emits.
        whole: Whether an answer that is ``cut`` is cut by its template and the context only: its last
            block is denoised as a whole, and upstream cuts what it emits.
        open_blocks: Most blocks per request that are denoised at the same time. A canvas is as wide
            as all of them.
        final: What a window leaves computed: ``whole_blocks``, ``nothing`` or a mode's own
            function of grid, window end and known tokens.
        slides: Whether there is no grid: the open block begins at the first unknown position.
        elastic: Whether an answer begins as long as its template, and may grow to ``max_tokens``.
    """

    from_prompt: bool = False
    cut: bool = False
    whole: bool = False
    open_blocks: int = 1
    final: Callable[[BlockGrid, int, int], int] = whole_blocks
    slides: bool = False
    elastic: bool = False

    def grid(
        self,
        block_length: int,
        prompt_len: int,
        limit: int,
        canvas: int | None = None,
        open_blocks: int = NO_LIMIT,
    ) -> BlockGrid:
        """One request's blocks.

        Args:
            block_length: Tokens per block.
            prompt_len: Tokens of the prompt.
            limit: Where the answer ends by ``max_tokens``, its template and the context.
            canvas: Most tokens of a canvas; None where the answer is one.
            open_blocks: Most blocks that the request opens.
        """
        origin, open_blocks = prompt_len if self.from_prompt else 0, min(self.open_blocks, open_blocks)
        if not self.cut:
            # Without further blocks a request ends before the limit matters.
            last = limit + (origin - limit) % block_length
            limit = last if open_blocks > 1 else NO_LIMIT
        return BlockGrid(
            block_length,
            origin=origin,
            limit=limit,
            open_blocks=open_blocks,
            final=self.final,
            canvas=canvas and max(canvas // block_length, 1) * block_length,
            slides=self.slides,
        )
