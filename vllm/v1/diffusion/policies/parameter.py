# SPDX-License-Identifier: Apache-2.0
"""What a parameter of a request is: one record, from which checks, defaults, docs and options are made.

The ranges are pydantic's, as in upstream's configurations. A request, ``--diffusion-config`` and the
command line all read the same record, so no range is written twice.
"""

from __future__ import annotations

from ctypes import c_float
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from vllm.v1.diffusion.kernels.rules import MAX_CANVAS

PREFIX = "diffusion_"
"""What a parameter's name begins with in ``SamplingParams.extra_args`` and ``vllm_xargs``."""

MAX_STEPS = 32768
"""More than any block has positions; a step's number must fit beside a position's in 64 bits."""

_LARGEST = 1e30
"""Policies compute in float32, which must not overflow."""

_SMALLEST = 1.17549435e-38
"""The smallest normal float32: devices may take what is below it for 0."""

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=_LARGEST)]
NotNegative = Annotated[float, Field(ge=0, le=_LARGEST)]
AnyNumber = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
BlockLength = Annotated[int, Field(ge=1, le=MAX_CANVAS)]
CacheMode = Literal["none", "prefix", "dual"]
Estimator = Literal["left_to_right", "one_step", "monte_carlo"]
Watched = Literal["steps"]
Rows = Literal["exact", "elastic"]
Count = Annotated[int, Field(ge=0, le=MAX_STEPS)]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


def _as_bool(value: Any) -> Any:
    # The server's vllm_xargs turn true and false into 1 and 0.
    return bool(value) if isinstance(value, int) and value in (0, 1) else value


def in_float32(value: float) -> float:
    """What a number is where it is computed with: 0 where it is too small, infinite where it is too large."""
    narrow = float(c_float(value).value)
    return 0.0 if abs(narrow) < _SMALLEST else narrow


Flag = Annotated[bool, BeforeValidator(_as_bool)]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a request.

    Attributes:
        meaning: What it does: a sentence in Markdown.
        kind: Its type and range, as pydantic reads them. A ``description`` in it names values
            that no range describes.
        default: What holds where neither the request, ``--diffusion-config`` nor the family says;
            None: it must be given.
        otherwise: What holds where it is not given, in words, if ``default`` does not say it.
        aliases: Other names that are accepted: those of other repositories' flags.
        families: Names of the families it has an effect on; none stands for all.
    """

    meaning: str
    kind: Any = AnyNumber
    default: float | None = None
    otherwise: str = ""
    aliases: tuple[str, ...] = ()
    families: tuple[str, ...] = ()

    def parse(self, value: Any) -> Any:
        """Checks a value.

        Returns:
            The value, of the parameter's type.

        Raises:
            ValueError: It is of another type or out of range; the text reads after the value.
        """
        try:
            parsed = self._adapter.validate_python(value)
        except ValidationError:
            raise ValueError(f"must be {self.allowed}") from None
        above = self.schema.get("exclusiveMinimum")
        if above is not None and in_float32(parsed) <= above:
            raise ValueError(f"must be {self.allowed}; in float32, as it is computed with, it is {above:g}")
        return parsed

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its values."""
        return self._adapter.json_schema()

    @property
    def allowed(self) -> str:
        """Its values in words; reads after "must be"."""
        schema = self.schema
        if "description" in schema:
            return str(schema["description"])
        if "const" in schema:
            return repr(schema["const"])
        if "enum" in schema:
            return f"one of {', '.join(schema['enum'])}"
        if schema["type"] == "boolean":
            return "true or false"
        noun = "an integer" if schema["type"] == "integer" else "a number"
        above, low, high = (schema.get(key) for key in ("exclusiveMinimum", "minimum", "maximum"))
        bounds = [] if above is None else [f"above {above:g}"]
        if low is not None:
            bounds.append(f"from {low:g} to {high:g}" if high is not None else f"of at least {low:g}")
        elif high is not None:
            bounds.append(f"of at most {high:g}")
        return " ".join([noun, *bounds])

    @property
    def default_text(self) -> str:
        """What holds where it is not given, in words."""
        if self.otherwise:
            return self.otherwise
        last = "it must be given" if self.default is None else f"{self.default:g}"
        return f"`--diffusion-config`, else {last}"

    @property
    def is_number(self) -> bool:
        """Whether its values are numbers, which a policy may read."""
        return self.schema.get("type") in ("integer", "number")

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.kind, config=ConfigDict(strict=True, allow_inf_nan=False))


THRESHOLD = Parameter(
    "Confidence from which a position is unmasked.",
    Share,
    otherwise="`--diffusion-config`, else the family's",
)
"""The number that most policies share."""
