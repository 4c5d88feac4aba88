# SPDX-License-Identifier: Apache-2.0
"""Upstream's structured decisions (``/v1/systemone``) on models with a mask.

A question is one read of a short canvas: a mask in the label's place, an end token behind it, padding.
One denoising step gives the probability of each label. Upstream does the same with DiffusionGemma.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vllm.entrypoints.generate.structured_decisions.question_types import (
    QUESTION_TYPES,
    Question,
    StructuredDecisionError,
)
from vllm.entrypoints.generate.structured_decisions.strategies import (
    READ_STRATEGIES,
    DiffusionGemmaCanvasStrategy,
    ReadContext,
    ReadStrategy,
    prompt_tail,
    reply_label_ids,
)
from vllm.sampling_params import SamplingParams
from vllm.tokenizers import TokenizerLike
from vllm.v1.diffusion.config import resolve_diffusion_config

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_LOOPS = ("block_diffusion", "exact_block_diffusion", "full_diffusion", "prompt_block_diffusion")
"""Loops in which a canvas may be given and its log probabilities be read."""


class MaskedCanvasStrategy(DiffusionGemmaCanvasStrategy):
    """Reads a label at the first position of a canvas, behind the chat prompt as it is."""

    def __init__(self, context: ReadContext) -> None:
        """Makes it.

        Args:
            context: Upstream's.

        Raises:
            ValueError: No kind of question has labels of one token, or the tokenizer has no end token.
        """
        ReadStrategy.__init__(self, context)
        tokenizer, prompt = self._tokenizer(), self._generation_prompt()
        vllm_config = context.engine_client.vllm_config
        config = resolve_diffusion_config(vllm_config)
        if tokenizer.eos_token_id is None:
            raise ValueError("Structured decisions need the tokenizer's end token.")
        assert config.block_length is not None and config.mask_token_id is not None
        self.tail = prompt_tail(tokenizer, prompt)
        self.label_ids = _labels(tokenizer, prompt)
        self.thought: list[int] = []
        self.end, self.mask = tokenizer.eos_token_id, config.mask_token_id
        self.pad = self.end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        # Blocks at multiples of their length are divided, not shortened.
        self.width = math.gcd(config.block_length, self.CANVAS_STEP)
        self.vocab_size = vllm_config.model_config.get_vocab_size()
        self.max_model_len = vllm_config.model_config.max_model_len

    def _label_groups(self, question: Question) -> list[list[int]]:
        missing = [label for label in question.labels if label not in self.label_ids]
        if missing:
            raise StructuredDecisionError(
                f"question {question.id!r}: type={question.type.name!r} is not supported by this model: its "
                f"tokenizer has no single token for {', '.join(map(repr, missing))}"
            )
        return super()._label_groups(question)

    def _sampling_params(self, label_ids: list[int], prompt_ids: list[int]) -> SamplingParams:
        canvas = [self.mask, self.end, *[self.pad] * self.width][: self.width]
        extra = {
            "diffusion_seed_canvas": canvas,
            "diffusion_canvas_length": self.width,
            "diffusion_max_steps": 1,
            "diffusion_read_only": True,
        }
        return SamplingParams(
            max_tokens=min(2, self.width), temperature=0.0, logprob_token_ids=label_ids, extra_args=extra
        )


def _labels(tokenizer: TokenizerLike, prompt: list[int]) -> dict[str, int]:
    """Tokens of the labels of each kind of question whose labels are single tokens behind a prompt."""
    found: dict[str, int] = {}
    refused = []
    for kind in QUESTION_TYPES.values():
        try:
            _, ids = reply_label_ids(tokenizer, prompt, kind.label_set)
        except ValueError as error:
            refused.append(str(error))
        else:
            found.update(zip(kind.label_set, ids, strict=True))
    if not found:
        raise ValueError("; ".join(refused))
    return found


def offer_decisions(vllm_config: VllmConfig) -> None:
    """Registers how this engine's model is read in upstream's table of strategies, if it can be read.

    Args:
        vllm_config: The configuration.
    """
    if vllm_config.generation_loop in _LOOPS:
        for architecture in vllm_config.model_config.architectures:
            READ_STRATEGIES.setdefault(architecture, MaskedCanvasStrategy)
