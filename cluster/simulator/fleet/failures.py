"""Replicas that die at given times, and come back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cluster.simulator.fleet.fleet import Fleet
from router.flow.classes import seconds
from workers.core.errors import ConfigError

BACK_S = 30.0  # where nothing is said
_FAILURE = re.compile(r"([a-z0-9-]+)@([0-9.]+[a-z]*)(?:\+([0-9.]+[a-z]*|never))?")


@dataclass(frozen=True, slots=True)
class Failure:
    """`back_s` after its death it is there again, empty; None = never."""

    replica: str
    at_s: float
    back_s: float | None = BACK_S

    @classmethod
    def parse(cls, text: str) -> Failure:
        """`decode-1@120s`, `decode-1@120s+1m` or `decode-1@120s+never`. Raises ConfigError."""
        found = _FAILURE.fullmatch(text.strip())
        if found is None:
            raise ConfigError(f"{text!r} is no failure; write decode-1@120s or decode-1@120s+30s")
        name, at, back = found.groups()
        try:
            back_s = None if back == "never" else BACK_S if back is None else seconds(back)
            return cls(name, seconds(at), back_s)
        except ValueError as error:
            raise ConfigError(f"{text!r} is no failure: {error}") from None


def read_failures(given: Collection[str], names: Collection[str]) -> list[Failure]:
    """Each is a failure, or `@FILE` with one a line (# begins a comment). Raises ConfigError for
    who is none of `names`."""
    lines: list[str] = []
    for text in given:
        if text.startswith("@"):
            lines += _lines(Path(text[1:]))
        else:
            lines.append(text)
    failures = [Failure.parse(line) for line in lines]
    for failure in failures:
        if failure.replica not in names:
            raise ConfigError(
                f"no replica {failure.replica!r} to fail; there are: {', '.join(sorted(names))}"
            )
    return sorted(failures, key=lambda failure: failure.at_s)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    stripped = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in stripped if line]


async def play(failure: Failure, fleet: Fleet) -> None:
    """Times count from now."""
    await asyncio.sleep(failure.at_s)
    fleet.kill(failure.replica)
    if failure.back_s is not None:
        await asyncio.sleep(failure.back_s)
        if failure.replica not in fleet.workers:
            fleet.start(failure.replica)
