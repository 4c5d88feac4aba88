"""Our subclasses still fit upstream's classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from tests.upstream_contract.overlay_source import attributes, classes, self_uses

PAIRS = list(classes())
# Methods that upstream must call by these names: where one is renamed, ours would never run.
CALLED_BY_UPSTREAM = {
    "Scheduler": {
        *("add_request", "schedule", "update_from_output", "make_stats", "update_draft_token_ids"),
        *("_free_request", "_preempt_request", "_update_after_schedule"),
    },
    "DefaultModelState": {"custom_sampler", "add_request", "prepare_inputs", "prepare_attn"},
}


def overridden() -> list[Any]:
    """Return (our method, upstream's), one a method that both classes define."""
    found = []
    for ours, theirs in PAIRS:
        for name, method in vars(ours).items():
            base = getattr(theirs, name, None)
            plain = inspect.isfunction(method) and inspect.isfunction(base)
            if plain and (not name.startswith("__") or name == "__init__"):
                found.append(pytest.param(method, base, id=f"{ours.__name__}.{name}"))
    return found


def takes(method: Callable[..., Any]) -> tuple[list[inspect.Parameter], bool]:
    """Return a method's named parameters, and whether it takes any others."""
    parameters = list(inspect.signature(method).parameters.values())
    variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    named = [parameter for parameter in parameters if parameter.kind not in variadic]
    return named, any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters)


@pytest.mark.parametrize(("ours", "theirs"), overridden())
def test_an_override_takes_what_upstream_passes(ours: Callable[..., Any], theirs: Callable[..., Any]) -> None:
    mine, anything = takes(ours)
    wanted, _ = takes(theirs)
    if ours.__name__ == "__init__" and not anything:
        pytest.skip("made by the overlay alone")
    missing = [p.name for p in wanted if p.name not in {q.name for q in mine}]
    assert anything or not missing, f"upstream also passes {missing}"
    names = [p.name for p in wanted]
    strange = [q.name for q in mine if q.name not in names and q.default is inspect.Parameter.empty]
    assert not strange, f"upstream does not pass {strange}"
    shared = [q.name for q in mine if q.name in names]
    assert shared == [n for n in names if n in shared], "the order of the parameters changed"


@pytest.mark.parametrize(("ours", "theirs"), [pytest.param(*p, id=p[0].__name__) for p in PAIRS])
def test_what_we_take_from_self_is_there(ours: type, theirs: type) -> None:
    missing = self_uses(ours) - attributes(ours)
    assert not missing, f"{theirs.__module__}.{theirs.__name__} no longer has {sorted(missing)}"


@pytest.mark.parametrize("name", sorted(CALLED_BY_UPSTREAM))
def test_upstream_still_has_the_methods_that_we_override(name: str) -> None:
    bases = {theirs for _, theirs in PAIRS if theirs.__name__ == name}
    assert bases, f"no class of the overlay extends {name}"
    for base in bases:
        missing = CALLED_BY_UPSTREAM[name] - set(dir(base))
        assert not missing, f"{base.__module__}.{name} has lost {sorted(missing)}"
