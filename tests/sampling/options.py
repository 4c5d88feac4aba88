# SPDX-License-Identifier: Apache-2.0
"""What requests of these tests ask for."""

from __future__ import annotations

import itertools
from typing import Any

from tests.sampling.rig import Request
from vllm import SamplingParams
from vllm.v1.diffusion.request.template import HOLE

STOPS = [3, 5, 7, 11]
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "repetition": {"repetition_penalty": 1.9},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": -0.9},
    "bias": {"logit_bias": {4: 6.0, 9: -3.0, 20: 4.5}},
    "allowed": {"allowed_token_ids": [1, 2, 3, 5, 8, 13, 21, 34]},
    "min_tokens": {"min_tokens": 6, "stop_token_ids": STOPS},
    "bad_words": {"bad_words": [[13], [1, 2], [2, 1], [5, 5], [4, 20], [20, 20, 4], [21, 34]]},
}
PROMPT = [1, 2, 3, 4, 20, 3]
FEATURES: dict[str, dict[str, Any]] = {
    "template": {"template": (3, HOLE, HOLE, 4, HOLE, HOLE, 5, HOLE)},
    "max_steps": {"max_steps": 2},
    "exit_threshold": {"exit_threshold": 0.3},
    "stop": {"stop_ids": (3, 5)},
    "late": {"late_ids": (3, 5)},
    "stepwise": {"stepwise": True},
    "cache": {"cache": "dual"},
    "graded": {"constrained": True},
}


def params(**options: Any) -> SamplingParams:
    """Greedy unless it says otherwise; bad words as tokens."""
    words = options.pop("bad_words", None)
    made = SamplingParams(**{"temperature": 0.0, **options})
    made._bad_words_token_ids = words
    return made


def requests() -> list[Request]:
    """Each option alone, in pairs, and all of them, with several shapes."""
    names = [n for n in OPTIONS if n != "none"]
    groups = [("none",), *itertools.combinations(names, 1), *itertools.combinations(names, 2), tuple(names)]
    made = []
    for i, group in enumerate(groups):
        options = {key: value for name in group for key, value in OPTIONS[name].items()}
        how = {"algorithm": "threshold", "threshold": 0.2} if i % 2 else {"steps": (1, 2, 3)[i % 3]}
        made.append(
            Request(params(**options), PROMPT[: 3 + i % 4], key=i, block_length=(4, 8, 1, 2)[i % 4], **how)
        )
    return made
