# SPDX-License-Identifier: Apache-2.0
"""Upstream's structured decisions, read from a canvas of a model with a mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.conftest import Server, serving
from tests.server.posting import post

CHOICE = {"type": "choice", "instructions": "which?", "criteria": {"one": "1", "two": "2", "three": "3"}}


@pytest.fixture(scope="module")
def decider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose chat prompts end with a token of their own, behind which labels are found."""
    from vllm.v1.diffusion import bundled_path

    folder = tmp_path_factory.mktemp("decisions")
    template = folder / "template.jinja"
    template.write_text("{{ messages[-1]['content'] }}<|im_start|>")
    with serving(bundled_path(), folder / "log", "--chat-template", str(template)) as running:
        yield running


def decide(server: Server, questions: dict[str, Any]) -> tuple[int, Any]:
    return post(server, "/v1/systemone", {"state": "1003/0300/3210/4132=", "questions": questions})


def test_a_choice(decider: Server) -> None:
    """Probabilities of the labels, which a canvas of one step gives; the same again."""
    status, body = decide(decider, {"a": CHOICE, "b": CHOICE | {"instructions": "and then?"}})
    assert status == 200, body
    assert body["answers"].keys() == body["diagnostics"].keys() == {"a", "b"}
    for name in ("a", "b"):
        probabilities = body["answers"][name]["probabilities"]
        assert probabilities.keys() == {"one", "two", "three"}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert 0 < body["diagnostics"][name]["label_mass"] <= 1 + 1e-6
    alone = decide(decider, {"a": CHOICE})[1]["answers"]["a"]
    assert alone["probabilities"] == pytest.approx(body["answers"]["a"]["probabilities"])


def test_a_question_whose_labels_are_no_tokens(decider: Server) -> None:
    """The bundled model's tokens are characters: ``yes`` is none."""
    status, body = decide(decider, {"q": {"type": "noul", "instructions": "is it?"}})
    assert status == 400
    assert "type='noul' is not supported by this model" in body["error"]["message"]
