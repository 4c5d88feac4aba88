# SPDX-License-Identifier: Apache-2.0
"""Upstream's structured decisions, read from a canvas of a model with a mask."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.conftest import Server
from tests.server.test_clients import post

CHOICE = {"type": "choice", "instructions": "which?", "criteria": {"one": "1", "two": "2", "three": "3"}}


def decide(server: Server, questions: dict[str, Any]) -> tuple[int, Any]:
    return post(server, "/v1/systemone", {"state": "1003/0300/3210/4132=", "questions": questions})


def test_a_choice(server: Server) -> None:
    """Probabilities of the labels, which a canvas of one step gives; the same again."""
    status, body = decide(server, {"a": CHOICE, "b": CHOICE | {"instructions": "and then?"}})
    assert status == 200, body
    assert body["answers"].keys() == body["diagnostics"].keys() == {"a", "b"}
    for name in ("a", "b"):
        probabilities = body["answers"][name]["probabilities"]
        assert probabilities.keys() == {"one", "two", "three"}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert 0 < body["diagnostics"][name]["label_mass"] <= 1 + 1e-6
    alone = decide(server, {"a": CHOICE})[1]["answers"]["a"]
    assert alone["probabilities"] == pytest.approx(body["answers"]["a"]["probabilities"])


def test_a_question_whose_labels_are_no_tokens(server: Server) -> None:
    """The bundled model's tokens are characters: ``yes`` is none."""
    status, body = decide(server, {"q": {"type": "noul", "instructions": "is it?"}})
    assert status == 400
    assert "type='noul' is not supported by this model" in body["error"]["message"]
