# SPDX-License-Identifier: Apache-2.0
"""``d3llm``: sub-blocks of an answer open one after the other, before those before them are full (d3LLM)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, Field
from typing_extensions import override

from vllm.v1.diffusion.policies.adaptive.entropy_distance import ENTROPY_THRESHOLD
from vllm.v1.diffusion.policies.base import CanvasView, PositionStats, Rewrite, UnmaskingPolicy
from vllm.v1.diffusion.policies.parameter import Parameter, PositiveCount, Share
from vllm.v1.diffusion.policies.redrawing.daedal import END, END_TOKEN_ID

EARLY_STOP = "early_stop"
"""The number that says whether an end token ends the answer before it is denoised."""


def _as_number(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


_Switch = Annotated[int, BeforeValidator(_as_number), Field(ge=0, le=1, description="true or false")]


class D3llm(UnmaskingPolicy):
    """Decides in the open sub-blocks of the answer, by entropy, while every step sees all of it (d3LLM).

    The first sub-block is open. A step opens the next one if ``block_add_threshold`` of the last open one
    is unmasked. Then it unmasks what has an entropy of at most ``entropy_threshold``, and the position of the
    lowest entropy. If that leaves out the first sub-block with masks, its lowest is unmasked too.

    With ``early_stop``, all behind the first end token of the answer becomes that token while a mask is left.
    What was masked there takes part in the next step once more, as in the published code: the lowest
    entropy may be there.
    """

    whole_answer = True
    rewrites_text = False
    numbers: ClassVar = {
        "sub_block_length": Parameter(
            "Tokens of a sub-block; the answer's last one may be shorter.",
            PositiveCount,
            default=32,
        ),
        "entropy_threshold": ENTROPY_THRESHOLD,
        "block_add_threshold": Parameter(
            "Share of the last open sub-block that must be unmasked for the next one to open; "
            "with 1 sub-blocks are denoised one by one.",
            Share,
            default=0.1,
        ),
        # The first sub-block with masks follows a full one, or the prompt, whatever this says.
        "decoded_token_threshold": Parameter(
            "Share of a sub-block that must be unmasked for a step to owe the next one a token. Taken as "
            "published; changes no answer, since a step owes it to the first sub-block with masks alone, "
            "and all before that is unmasked.",
            Share,
            default=0.95,
        ),
        EARLY_STOP: Parameter(
            "Whether all behind the first end token of the answer becomes that token once it is unmasked.",
            _Switch,
            default=0,
        ),
        END_TOKEN_ID: END,
    }

    @override
    def make_memory(self, requests: int, width: int, device: torch.device) -> dict[str, torch.Tensor]:
        positions = torch.zeros(requests, width, dtype=torch.bool, device=device)
        return {
            "opened": torch.zeros(requests, dtype=torch.int64, device=device),
            "left": positions,  # What the step before left masked.
            "again": positions.clone(),  # What has become the end token, and what the step writes there.
        }

    @override
    def select(self, stats: PositionStats, canvas: CanvasView) -> torch.Tensor:
        masked, memory, values = canvas.masked, canvas.memory, canvas.values
        columns = torch.arange(masked.shape[1], device=masked.device)
        length = values["sub_block_length"].to(torch.int64)[:, None]
        number = columns // length
        first = masked.to(torch.int8).argmax(dim=1, keepdim=True) // length
        last = memory["opened"][:, None].clamp(min=1) - 1
        tokens = torch.minimum(length, canvas.block_length[:, None] - last * length).clamp(min=1)
        share = (tokens - (masked & (number == last)).sum(dim=1, keepdim=True)) / tokens
        # A template may have filled several.
        opened = torch.maximum(last + 1 + (share >= values["block_add_threshold"][:, None]), first + 1)
        memory["opened"].copy_(opened[:, 0])

        eligible = masked & (number < opened)
        stops = any(canvas.host_values[EARLY_STOP])
        if stops:
            ended = memory["left"] & canvas.unmasked & (values[EARLY_STOP] > 0)[:, None]
            eligible |= ended & (canvas.tokens == values[END_TOKEN_ID].to(torch.int64)[:, None])
        cost = stats.entropy.nan_to_num(nan=torch.finfo(torch.float32).max)
        cost = cost.masked_fill(~eligible, torch.inf)
        chosen = cost <= values["entropy_threshold"][:, None]
        chosen |= columns == cost.argmin(dim=1, keepdim=True)
        in_first = number == first
        owed = ~(chosen & in_first).any(dim=1, keepdim=True)
        chosen |= owed & (columns == cost.masked_fill(~in_first, torch.inf).argmin(dim=1, keepdim=True))
        if stops:
            chosen &= eligible
            memory["left"].copy_(masked & ~chosen)
            memory["again"].copy_(chosen & ~masked)
        return chosen & masked

    @override
    def may_rewrite(self, values: Mapping[str, float]) -> bool:
        return bool(values[EARLY_STOP])

    @override
    def rewrite(self, stats: PositionStats, canvas: CanvasView) -> Rewrite:
        end = torch.where(canvas.values[EARLY_STOP] > 0, canvas.values[END_TOKEN_ID], -1)
        return Rewrite(canvas.memory["again"], fill=end.to(torch.int64))
