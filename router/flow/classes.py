"""Service classes: what a kind of request is promised, and what a tenant's share is."""

from __future__ import annotations

import re
from typing import Annotated, Any, NamedTuple, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*([0-9.]+)\s*([a-z]*)\s*")


def seconds(value: Any) -> Any:
    """ "200ms", "1.5s", "2m" or a number of seconds. Raises ValueError."""
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch(value)
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{value!r} is no duration; write 200ms, 1.5s or 2m")
    return float(found[1]) * _UNITS[found[2]]


_Written = Annotated[str, Field(pattern=r"^\s*[0-9.]+\s*(us|ms|s|m|min|h)?\s*$")]
Duration = Annotated[
    PositiveFloat, BeforeValidator(seconds, json_schema_input_type=PositiveFloat | _Written)
]


class FlowKey(NamedTuple):
    """Whose requests wait in one line."""

    slo_class: str
    tenant: str


class SloClass(BaseModel):
    """Targets order and place requests, they refuse none; `max_wait` and a client's deadline do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ttft: Duration | None = Field(default=None, description="time to first token; None = none")
    itl: Duration | None = Field(default=None, description="mean time between tokens; None = none")
    weight: PositiveFloat = Field(
        default=1.0, description="share of the work where classes compete"
    )
    max_wait: Duration = Field(
        default=60.0, description="in the queue; who would wait longer is refused"
    )
    max_queue: PositiveInt = Field(default=4096, description="requests in the queue")
    background: bool = Field(default=False, description="gets only what the other classes leave")


def default_classes() -> dict[str, SloClass]:
    return {
        "interactive": SloClass(ttft=1.0, itl=0.05, weight=4.0, max_wait=10.0),
        "standard": SloClass(ttft=5.0, itl=0.1, weight=2.0, max_wait=60.0),
        "batch": SloClass(weight=1.0, max_wait=3600.0, background=True),
    }


class SloConfig(BaseModel):
    """`tenants`: weights of those whose share is not 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: dict[str, SloClass] = Field(default_factory=default_classes, min_length=1)
    default: str = Field(default="standard", description="class of a request that names none")
    tenants: dict[str, PositiveFloat] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.default not in self.classes:
            raise ValueError(
                f"default is {self.default!r}, which is none of the classes "
                f"{', '.join(sorted(self.classes))}"
            )
        return self
