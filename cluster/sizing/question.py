"""What a plan is asked for, read from words. What cannot be is said here, with what can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError

from router.flow.classes import SloClass
from workers.config import EngineConfig
from workers.core.errors import ConfigError
from workers.core.hardware import hardware
from workers.models.architecture import ModelConfig

SLO_CLASS = "standard"
TARGETS = ("ttft", "itl")
# Of GPUs; EngineConfig's own suit a CPU. Large blocks take less to simulate.
ENGINE = EngineConfig(block_size=64, step_tokens=2048, max_seqs=256)


@dataclass(frozen=True, slots=True)
class Question:
    """`name`: of the model, as cluster.yaml would have it. `goal`: part of the requests that are to
    keep both targets. `prices`: of a GPU of each hardware; those not named cost 1. `tensor`: ranks
    that may share heads; empty = as many as a machine has."""

    name: str
    model: ModelConfig
    hardware: tuple[str, ...]
    slo: SloClass
    goal: float = 0.95
    gpus: int | None = None
    prices: Mapping[str, float] = field(default_factory=dict)
    tensor: tuple[int, ...] = ()
    engine: EngineConfig = ENGINE

    @property
    def unit(self) -> str:
        return "price" if self.prices else "GPUs"


def read_slo(text: str) -> SloClass:
    """`ttft=2s,itl=50ms`, or one of them. Raises ConfigError."""
    given = _pairs("--slo", text, "ttft=2s,itl=50ms")
    unknown = given.keys() - set(TARGETS)
    if unknown or not given:
        raise ConfigError(f"--slo {text!r}: write ttft=2s,itl=50ms, or one of them")
    try:
        return SloClass.model_validate(given)
    except ValidationError as error:
        said = "; ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors())
        raise ConfigError(f"--slo {text!r}: {said}") from None


def read_hardware(text: str) -> tuple[str, ...]:
    """`h100` or `h100,l40s`. Raises ConfigError that lists what there is."""
    names = tuple(dict.fromkeys(hardware(name.strip()).name for name in text.split(",")))
    return names


def read_prices(given: Sequence[str], known: Sequence[str]) -> dict[str, float]:
    """Each `h100=2.5`, several with commas between. Raises ConfigError."""
    prices: dict[str, float] = {}
    for name, value in (
        pair for text in given for pair in _pairs("--price", text, "h100=2.5").items()
    ):
        price = _number(value)
        if price is None or price <= 0:
            raise ConfigError(f"--price {name}={value}: a price is a number above 0")
        if name not in known:
            raise ConfigError(f"--price {name}: --hardware has only {', '.join(known)}")
        prices[name] = price
    missing = [name for name in known if name not in prices]
    if prices and missing:
        raise ConfigError(
            f"--price says nothing of {', '.join(missing)}: name every hardware, or none"
        )
    return prices


def read_tensor(text: str | None) -> tuple[int, ...]:
    """`1,2,4`. Raises ConfigError."""
    if text is None:
        return ()
    sizes = [size.strip() for size in text.split(",")]
    if not all(size.isdigit() and int(size) for size in sizes):
        raise ConfigError(f"--tp {text!r}: write 2, or 1,2,4")
    return tuple(sorted({int(size) for size in sizes}))


def _pairs(option: str, text: str, example: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"{option} {text!r}: write {example}")
        if name in found:
            raise ConfigError(f"{option} {text!r}: {name} stands twice")
        found[name] = value
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
