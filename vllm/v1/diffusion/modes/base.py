# SPDX-License-Identifier: Apache-2.0
"""What a mode is: how the windows, rows and sequences of a kind of diffusion model lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm.v1.diffusion.modes.grid import BlockRule

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(frozen=True)
class Part:
    """A class of a mode, by its dotted path: each process imports the parts that it runs."""

    path: str

    def load(self) -> Any:
        """Imports it."""
        from vllm.utils.import_utils import resolve_obj_by_qualname

        return resolve_obj_by_qualname(self.path)


@dataclass(frozen=True)
class Mode:
    """One kind of diffusion decoding, given to the loop, scheduler, model state and sampler.

    There is one class of each of these. What differs between kinds of models is here: a new kind
    is a file in ``modes/`` with one ``Mode`` in it, an entry of ``MODES`` and the parts that no
    other mode has. A loop names its mode (``mode = CAUSAL``).

    Attributes:
        name: What the registry calls it.
        blocks: Where blocks begin and end and what a window leaves computed.
        planner: ``core.planner.WindowPlanner``, in the engine core, without tensors: the next
            window of a request and its rows of logits.
        rows: ``sampling.rows.RowLayout``, in the worker: which rows have logits, which canvas
            positions a step may unmask, what it emits and leaves computed.
        attention: ``worker.sequences.Attention``, in the worker: a batch's windows as sequences
            of an attention backend.
        settings: ``loops.settings.Settings``, in the front end: what the engine's configuration
            must be, and what a request may ask for.
        noise: ``canvas.noise.MaskNoise``, in the worker: what stands at a position that is not
            unmasked.
        unscored: Why the tokens of a text have no log probabilities, in words that end a sentence; None
            where they have: then ``request/likelihood.py`` denoises them as targets.
        verifies: Whether policies may have their drafts verified.
        elastic_rows: Whether a request may have steps compute a part of its block.

    What a new kind of decoding changes, and where:

    ==========================================  ==================================================
    blocks count from the prompt's end          ``BlockRule.from_prompt``; in a prompt the first
                                                block is short. Its keys depend on the prompt's
                                                length then: ``settings`` must switch the prefix
                                                cache off unless prompts are causal by token, and
                                                must see to it that blocks fit into the context
    the last block ends with the answer         ``BlockRule.cut``
    a finished block is run again before its    ``core.anchored.AnchoredPlanner``: its
    keys and values are final                   ``commit_rows`` is the rows of logits of that pass,
                                                1 if it makes the next block's first token, 0 if
                                                it makes none. (In ``core.causal.BlockPlanner`` the
                                                commit rides along with the next block's first
                                                step.)
    that pass, or the prompt, is causal by      ``Attention.causal``, per sequence;
    token                                       ``BlockRule.final``: every known token that such a
                                                window held is final
    noise is no mask                            ``noise``: what new canvases hold;
                                                ``RowLayout.after_steps``: what a step writes to
                                                positions that stay open
    several blocks are open                     ``BlockRule.open_blocks``: the width of canvases
                                                and windows; ``RowLayout.emit``: the first blocks
                                                leave, the others stay (``multi_block``)
    rows of a block are not computed            ``WindowPlanner.window`` and ``round`` (positions
                                                of the window, rows of logits),
                                                ``RowLayout.place`` (which positions),
                                                ``RowLayout.point_logits`` (which rows),
                                                ``RowLayout.active`` (rows that count) and
                                                ``RowLayout.spread`` (statistics of all rows)
    tokens are inserted or deleted              ``RowLayout.after_steps``: may move what a canvas
                                                holds, before the block's end is decided
    a step verifies                             ``WindowPlanner.window`` and ``round``;
                                                ``RowLayout.emit`` (tokens that leave) and
                                                ``RowLayout.computed`` (positions that stay)
    ==========================================  ==================================================
    """

    name: str
    planner: Part
    rows: Part
    attention: Part
    settings: Part
    blocks: BlockRule = field(default_factory=BlockRule)
    noise: Part = Part("vllm.v1.diffusion.canvas.noise.MaskNoise")
    unscored: str | None = "this kind of decoding gives no log probabilities of a prompt"
    verifies: bool = False
    elastic_rows: bool = False


def mode_of(vllm_config: VllmConfig) -> Mode:
    """The mode of the configuration's generation loop.

    Raises:
        ValueError: The loop has none.
    """
    from vllm.v1.generation_loop.registry import get_generation_loop

    loop = get_generation_loop(vllm_config)
    mode = getattr(getattr(loop, "loop", loop), "mode", None)
    if not isinstance(mode, Mode):
        raise ValueError(
            f"generation_loop={vllm_config.generation_loop!r} has no mode: derive it from a diffusion "
            "loop, or give it one (mode = CAUSAL)."
        )
    return mode
