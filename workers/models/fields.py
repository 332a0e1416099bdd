"""Typed reading of config.json: a complaint names the file and the field."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.core.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the checkpoint, or a CheckpointError that names it."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


@dataclass(frozen=True)
class Fields:
    """A JSON object. A field that is absent or null is its default; without one it is required.
    `within`: of a nested object, the way to it ("rope_scaling.")."""

    path: Path
    values: Mapping[str, Any]
    within: str = ""

    def fail(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {self.within}{message}")

    def integer(self, name: str, default: int | None = None) -> int:
        """At least 1."""
        value = self._value(name, default)
        if type(value) is not int or value < 1:
            raise self.fail(f"{name} must be a positive integer, not {value!r}")
        return value

    def count(self, name: str, default: int) -> int:
        """An integer that may be 0."""
        value = self._value(name, default)
        if type(value) is not int or value < 0:
            raise self.fail(f"{name} must be a positive integer or 0, not {value!r}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """More than 0."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self.fail(f"{name} must be a positive number, not {value!r}")
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        values = self.values.get(name)
        if not isinstance(values, list) or not all(type(v) in (int, float) for v in values):
            raise self.fail(f"{name} must be a list of numbers, not {values!r}")
        return tuple(map(float, values))

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if type(value) is not bool:
            raise self.fail(f"{name} must be true or false, not {value!r}")
        return value

    def object(self, name: str) -> Fields | None:
        """None: there is none, or it is empty."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.fail(f"{name} must be an object, not {type(value).__name__}")
        return Fields(self.path, value, f"{self.within}{name}.") if value else None

    def only(self, name: str, values: Collection[Any], default: Any = None) -> Any:
        """The field, where it is one of those that are supported; fails by its name otherwise."""
        value = self._value(name, default)
        if not any(value == known for known in values):
            names = ", ".join(repr(known) for known in values if known is not None)
            also = f"; supported: {names}" if names else ""
            raise self.fail(f"{name} {value!r} is not supported{also}")
        return value

    def with_defaults(self, **defaults: Any) -> Fields:
        """Those of the family, for fields that are absent (null is a value)."""
        return Fields(self.path, defaults | dict(self.values), self.within)

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value
