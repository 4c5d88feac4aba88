# SPDX-License-Identifier: Apache-2.0
"""Parameters that end or cut a text, with the bundled model: a token is a character."""

from __future__ import annotations

from typing import Any

import pytest

from vllm import DiffusionParams, SamplingParams  # type: ignore[attr-defined]  # lazy
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind

# 27 tokens: 5 of the answer stand in the prompt's last block of 16, the rest in the next one.
SUDOKU = "sudoku 1003/0300/3210/4132="
SOLVED = "1423/2341/3214/4132"


def complete(llm: Any, **options: Any) -> Any:
    """One greedy completion, with a trace."""
    given = {"temperature": 0.0, "max_tokens": 32, "logprobs": 1, **options}
    extra = DiffusionParams(trace=True).to_extra_args()
    return llm.generate(SUDOKU, SamplingParams(extra_args=extra, **given), use_tqdm=False)[0].outputs[0]


@pytest.mark.parametrize("stop", ["2", "3/2", "/2", "/23", "1/321", "2E"])
@pytest.mark.parametrize("included", [False, True])
def test_stop_strings_cut_text_tokens_and_traces(bundled: Any, stop: str, included: bool) -> None:
    """In the middle of a block and across its border."""
    whole = complete(bundled, ignore_eos=False)
    cut = complete(bundled, stop=[stop], include_stop_str_in_output=included)
    at = SOLVED.find(stop)
    if at < 0:
        assert cut.text == SOLVED
        at, stop = len(SOLVED) + 1, ""  # the end token counts
    else:
        assert cut.text == SOLVED[: at + included * len(stop)]
        assert cut.stop_reason == stop
    count = at + len(stop)
    assert cut.finish_reason == "stop"
    assert cut.token_ids == whole.token_ids[:count]
    assert cut.diffusion.trace == whole.diffusion.trace[:count]
    assert cut.logprobs == whole.logprobs[:count]
    assert cut.cumulative_logprob == pytest.approx(
        sum(entry[token].logprob for token, entry in zip(cut.token_ids, cut.logprobs, strict=True))
    )


def test_stop_token_ids_end_in_the_middle_of_a_block(bundled: Any) -> None:
    cut = complete(bundled, stop_token_ids=[ord("4")])
    assert cut.text == "1"
    assert cut.stop_reason == ord("4")
    assert len(cut.token_ids) == len(cut.diffusion.trace) == len(cut.logprobs) == 2
    # Not before min_tokens: then the first of them is another.
    later = complete(bundled, stop_token_ids=[ord("4")], min_tokens=7)
    assert len(later.token_ids) >= 7
    assert ord("4") not in later.token_ids[:7]


def test_min_tokens_and_ignore_eos(bundled: Any) -> None:
    end = complete(bundled).token_ids[-1]
    longer = complete(bundled, min_tokens=25)
    assert len(longer.token_ids) >= 25
    assert end not in longer.token_ids[:25]
    assert len(complete(bundled, ignore_eos=True, max_tokens=33).token_ids) == 33


def test_bad_words_are_text(bundled: Any) -> None:
    words = ["23", "4/", "41", "1"]
    reported = complete(bundled, bad_words=words, max_tokens=21, ignore_eos=True)
    assert len(reported.token_ids) == 21
    assert not any(word in reported.text for word in words)


def test_repetitions_end_a_request(bundled: Any) -> None:
    params = RepetitionDetectionParams(max_pattern_size=1, min_count=3)
    reported = complete(bundled, logit_bias={ord("a"): 100.0}, repetition_detection=params)
    assert reported.text == "aaa"
    assert reported.stop_reason == "repetition_detected"


def test_a_stream_of_deltas(bundled: Any) -> None:
    """Each piece has its own tokens, traces and log probabilities."""
    core = bundled.llm_engine
    whole = complete(bundled, stop=["/321"])
    extra = DiffusionParams(trace=True).to_extra_args()
    params = SamplingParams(
        temperature=0.0, max_tokens=32, logprobs=1, stop=["/321"], extra_args=extra,
        output_kind=RequestOutputKind.DELTA,
    )  # fmt: skip
    core.add_request("deltas", SUDOKU, params)
    pieces = []
    while core.has_unfinished_requests():
        pieces += [output.outputs[0] for output in core.step()]
    assert len(pieces) > 1
    for piece in pieces:
        assert len(piece.token_ids) == len(piece.diffusion.trace or ()) == len(piece.logprobs)
    for name in ("token_ids", "logprobs"):
        assert [x for piece in pieces for x in getattr(piece, name) or ()] == list(getattr(whole, name))
    assert [x for piece in pieces for x in piece.diffusion.trace or ()] == whole.diffusion.trace
    assert pieces[-1].diffusion.steps_per_block == whole.diffusion.steps_per_block
    assert "".join(piece.text for piece in pieces) == whole.text
