"""JSON records of orders that a sentence or two describe.

The order of the keys, the order of the items and the spaces are free, and each of the three binds tokens far
apart. Costs and the total have to be calculated.
"""

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from .problem import Problem, weighted
from .words import CITIES, DAYS, GOODS, NAMES, SURNAMES, WEATHER

KEY_ORDERS = (
    ("name", "city", "day", "items", "total"),
    ("day", "name", "city", "items", "total"),
    ("items", "total", "name", "city", "day"),
)
_ORDER_WEIGHTS = (0.45, 0.35, 0.2)


@dataclass(frozen=True)
class Order:
    """An order: who bought what.

    Attributes:
        prompt: its description.
        record: the wanted JSON object.
    """

    prompt: str
    record: dict[str, Any]

    def is_right(self, text: str) -> bool:
        """Says whether ``text`` is JSON of the record, whatever the order and the spaces."""
        try:
            given = json.loads(text, object_pairs_hook=_unique)
        except ValueError:
            return False
        return bool(_sorted(given) == _sorted(self.record))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key twice")
    return fields


def _sorted(record: Any) -> Any:
    if not isinstance(record, dict) or not isinstance(record.get("items"), list):
        return record
    return record | {"items": sorted(record["items"], key=repr_sorted)}


def repr_sorted(item: Any) -> str:
    """A key to sort items by, whatever the order of their own keys."""
    return json.dumps(item, sort_keys=True)


def draw(rng: Random) -> Order:
    """Draws an order of one or two goods."""
    name = f"{rng.choice(NAMES)} {rng.choice(SURNAMES)}"
    city, day = rng.choice(CITIES), rng.choice(DAYS)
    goods = rng.sample(GOODS, 1 + (rng.random() < 0.7))
    lines = [(item, rng.randint(2, 9), rng.randint(2, 9)) for item in goods]
    if rng.random() < 0.5:
        listed = " and ".join(f"{count} {item} at {price} each" for item, count, price in lines)
    else:
        listed = " and ".join(f"{count} {item} ({price} each)" for item, count, price in lines)
    kind = rng.randrange(3)
    if kind == 0:
        text = f"On {day}, {name} from {city} ordered {listed}."
    elif kind == 1:
        text = f"We sold {listed} to {name}, who lives in {city}, on {day}."
    else:
        text = f"{name} came from {city} and bought {listed}. That was on {day}."
    if rng.random() < 0.3:
        text += f" It was {rng.choice(WEATHER)}."
    record = {
        "name": name,
        "city": city,
        "day": day,
        "items": [{"item": item, "count": count, "cost": count * price} for item, count, price in lines],
        "total": sum(count * price for _, count, price in lines),
    }
    return Order(f"As JSON: {text}\n", record)


def write(record: dict[str, Any], keys: tuple[str, ...], reverse: bool, compact: bool) -> str:
    """Writes a record with its keys, its items and its spaces as wanted."""
    items = record["items"][::-1] if reverse else record["items"]
    ordered = {key: items if key == "items" else record[key] for key in keys}
    return json.dumps(ordered, separators=(",", ":") if compact else (", ", ": "))


def make(rng: Random) -> Problem:
    """Draws an order and one of its right answers."""
    order = draw(rng)
    keys = KEY_ORDERS[weighted(rng, *_ORDER_WEIGHTS)]
    answer = write(order.record, keys, rng.random() < 0.25, rng.random() < 0.4)
    return Problem("record", order.prompt, answer, order.is_right)
