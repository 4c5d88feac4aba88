# SPDX-License-Identifier: Apache-2.0
"""Makes objects that upstream has made objects of classes of ours; nothing else in the overlay does.

Upstream's models name the classes of their layers, and its backends those of their implementations. An
object of another class computes otherwise, and its parts, weights and state stay what they were.
"""

from __future__ import annotations

from functools import cache
from typing import Any


def retype(made: Any, kind: type) -> None:
    """Makes an object one of a subclass of its class.

    Args:
        made: An object of any class.
        kind: The subclass, which needs no attributes but those that the object has.
    """
    assert issubclass(kind, type(made)), f"{kind.__name__} is no {type(made).__name__}"
    made.__class__ = kind


def become(made: Any, mixin: type, **attributes: Any) -> None:
    """Makes an object one of a class that has a mixin of ours before the object's own class.

    Args:
        made: An object of any class.
        mixin: What comes before its class.
        attributes: What the mixin wants to know of it.
    """
    own: type = type(made)
    retype(made, _class_of(mixin, own))
    for name, value in attributes.items():
        # Not as a module's own: parts that it refers to have a place in the model already.
        object.__setattr__(made, name, value)


def remade(made: Any, mixin: type) -> Any:
    """An object like another one, of a class that has a mixin of ours before the other's class.

    Args:
        made: An object of any class; it stays what it is.
        mixin: What comes before its class.
    """
    own: type = type(made)
    kind: Any = _class_of(mixin, own)
    new = kind.__new__(kind)
    vars(new).update(vars(made))
    return new


@cache
def _class_of(mixin: type, kind: type) -> type:
    """``FusedQwen3Attention``, ``SkinnyRMSNorm`` and the like, made once for a class."""
    prefix = getattr(mixin, "prefix", mixin.__name__)
    return type(prefix + kind.__name__, (mixin, kind), {"__doc__": mixin.__doc__})
