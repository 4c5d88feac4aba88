"""Every field of upstream's requests has a verdict, and every rule of ours a field."""

from __future__ import annotations

import pytest

from tests.upstream_contract.overlay_source import load
from tools import compatibility
from tools.compatibility_fields import KINDS, SAMPLING
from vllm.v1.diffusion.frontend.http_fields import RULES


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_a_request_has_a_verdict(kind: str) -> None:
    assert compatibility.request_rows(kind)


def test_every_sampling_parameter_has_a_verdict() -> None:
    assert compatibility.sampling_rows()


def test_a_field_without_a_verdict_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SAMPLING, "min_p")
    with pytest.raises(LookupError, match=r"no verdict on \['min_p'\]"):
        compatibility.sampling_rows()


def test_every_rule_is_about_a_field() -> None:
    fields: set[str] = set()
    for module, name, _, _ in KINDS.values():
        fields |= set(load(f"{module}:{name}").model_fields)
    assert set(RULES) <= fields
