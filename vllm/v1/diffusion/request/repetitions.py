# SPDX-License-Identifier: Apache-2.0
"""How often a grammar repeats what it repeats already: few characters may ask for much work.

A matcher keeps every count that a text may have. Where repetitions are nested and nothing has to stand
between their rounds, as in ``((a?){1,6}){1,6}``, these are as many as the product of the bounds. Each token
then takes longer than the one before it, soon seconds, and so may compiling. In a large vocabulary each mask
does, which tries every token from every count. A part that has to stand there once, as the comma in
``([a-z]{1,20},){1,500}``, leaves one count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_REGEX = re.compile(
    r"(?P<open>\((?:\?(?:[:=!]|<[=!]|P?<\w+>))?)|(?P<close>\))|(?P<or>\|)"
    r"|(?P<times>[*+?]\??|\{\d*(?:,\d*)?\}\??)"
    r"|(?P<atom>\\[pPu]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[^^$])|(?P<nothing>.)",
    re.DOTALL,
)
_EBNF = re.compile(
    r"(?P<rule>[\w.-]+)\s*(?:::=|:(?!:))|(?P<open>\(=?)|(?P<close>\))|(?P<or>\|)"
    r"|(?P<times>[*+?]|\{\s*\d*\s*(?:,\s*\d*\s*)?\}|~\s*\d+(?:\s*\.\.\s*\d+)?)"
    r'|(?P<name>[A-Za-z_][\w.-]*)|(?P<atom>"(?:\\.|[^"\\])*"|/(?:\\.|[^/\\])+/|\[(?:\\.|[^\]\\])*\])'
    r"|(?P<nothing>#[^\n]*|//[^\n]*|.)",
    re.DOTALL,
)
_ROUNDS = 16
"""Rules within rules that are followed."""


class _Part(NamedTuple):
    """A part of a grammar.

    Attributes:
        counts: The product of the nested repetitions.
        fixed: Whether something in it stands there exactly as often as it says.
        places: Counts of its longest repetition, all of which a text may be at once where the part is
            repeated and its rounds cannot be told apart.
    """

    counts: int
    fixed: bool
    places: int = 1


_ONE, _NOTHING = _Part(1, True), _Part(1, False)


class _Group:
    """What stands in brackets: alternatives of sequences of parts."""

    def __init__(self) -> None:
        self._alternatives: list[_Part] = []
        self._sequence: list[_Part] = []

    def add(self, part: _Part) -> None:
        self._sequence.append(part)

    def repeat(self, least: int, most: int | None) -> None:
        """Repeats the last part; without an upper bound there is nothing to count but the lower one."""
        if not self._sequence:
            return
        part, count = self._sequence.pop(), max(1, least if most is None else most)
        counts = part.counts if part.fixed else max(part.counts, part.places) * count
        self.add(_Part(counts, part.fixed and least == most and least > 0, max(part.places, count)))

    def alternative(self) -> None:
        parts = self._sequence or [_NOTHING]
        counts, places = max(p.counts for p in parts), max(p.places for p in parts)
        self._alternatives.append(_Part(counts, any(p.fixed for p in parts), places))
        self._sequence = []

    def whole(self) -> _Part:
        self.alternative()
        parts = self._alternatives
        counts, places = max(p.counts for p in parts), max(p.places for p in parts)
        return _Part(counts, all(p.fixed for p in parts), places)


def nested_counts(kind: str, grammar: Any) -> int:
    """The greatest product of the counts of nested repetitions between which nothing has to stand.

    Args:
        kind: The field of ``structured_outputs``: json, regex, grammar or structural_tag; 1 for others.
        grammar: Its value.
    """
    if grammar is None:
        return 1
    if kind == "regex":
        return _of_text(_REGEX, str(grammar))
    if kind == "grammar":
        return _of_text(_EBNF, str(grammar))
    if kind not in ("json", "structural_tag"):
        return 1
    try:
        found = json.loads(grammar) if isinstance(grammar, str) else grammar
    except ValueError:
        return 1  # Whoever compiles it says why it is none.
    return max((_of_text(syntax, text) for syntax, text in _texts(found)), default=1)


def _texts(value: Any) -> Iterator[tuple[re.Pattern[str], str]]:
    """The regular expressions and grammars of a schema or a structural tag."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            for name, inner in one.items():
                if name in ("pattern", "grammar") and isinstance(inner, str):
                    yield (_REGEX if name == "pattern" else _EBNF), inner
                elif name == "patternProperties" and isinstance(inner, dict):
                    yield from ((_REGEX, key) for key in inner)
            waiting += one.values()


def _of_text(syntax: re.Pattern[str], text: str) -> int:
    if "{" not in text and "~" not in text:
        return 1
    rules: dict[str, _Part] = {}
    for _ in range(1 if syntax is _REGEX else _ROUNDS):
        known = dict(rules)
        most = _pass(syntax, text, rules)
        if rules == known:
            break
    return most


def _pass(syntax: re.Pattern[str], text: str, rules: dict[str, _Part]) -> int:
    """Reads a text once; the parts that it names are what ``rules`` says, which learns what they are."""
    groups, rule, most = [_Group()], "", 1

    def end() -> int:
        while len(groups) > 1:  # An unclosed bracket: whoever compiles it refuses it.
            part = groups.pop().whole()
            groups[-1].add(part)
        rules[rule] = groups.pop().whole()
        return rules[rule].counts

    for found in syntax.finditer(text):
        kind, token = found.lastgroup, found[0]
        if kind == "atom":
            groups[-1].add(_ONE)
        elif kind == "open":
            groups.append(_Group())
        elif kind == "close":
            if len(groups) > 1:
                part = groups.pop().whole()
                groups[-1].add(part)
        elif kind == "or":
            groups[-1].alternative()
        elif kind == "times":
            groups[-1].repeat(*_bounds(token))
        elif kind == "name":
            groups[-1].add(rules.get(token, _ONE))
        elif kind == "rule":
            most = max(most, end())
            groups, rule = [_Group()], found["rule"]
    return max(most, end())


def _bounds(token: str) -> tuple[int, int | None]:
    """How often a repetition's part may stand there; None for no upper bound."""
    if token[0] not in "{~":
        return (1 if token[0] == "+" else 0), (1 if token[0] == "?" else None)
    numbers = re.findall(r"\d+|,|\.\.", token)
    least = int(numbers[0]) if numbers and numbers[0].isdigit() else 0
    if len(numbers) < 2 and numbers != [","]:
        return least, least
    return least, (int(numbers[-1]) if numbers[-1].isdigit() else None)
