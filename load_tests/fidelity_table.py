"""The table of fidelity.py: what was measured beside what was predicted, and whether the order of
configurations is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

NEAR = 0.15  # a prediction within this part counts as right
TIE = 0.05  # configurations closer than this are equally good
COLUMNS = {
    "ttft_p50": "TTFT p50",
    "ttft_p90": "TTFT p90",
    "itl_p50": "ITL p50",
    "itl_p90": "ITL p90",
    "throughput": "tokens/s",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """Seconds; throughput in output tokens a second, to the end of the last request. `answer`: the
    mean time to the end of a request, by which configurations are ranked."""

    ttft_p50: float
    ttft_p90: float
    itl_p50: float
    itl_p90: float
    throughput: float
    answer: float


@dataclass(frozen=True, slots=True)
class Row:
    config: str
    mix: str
    requests: int
    real: Seen
    predicted: Seen

    @property
    def ratios(self) -> dict[str, float]:
        """Predicted over real."""
        real = asdict(self.real)
        return {name: value / real[name] for name, value in asdict(self.predicted).items()}


def head() -> str:
    names = " | ".join(COLUMNS.values())
    return (
        "Seconds: real / predicted (ratio).\n\n"
        f"| configuration | mix | n | {names} |\n|" + "---|" * (3 + len(COLUMNS))
    )


def line(row: Row) -> str:
    real, predicted, ratios = asdict(row.real), asdict(row.predicted), row.ratios
    cells = [f"{real[n]:.3g} / {predicted[n]:.3g} ({ratios[n]:.2f})" for n in COLUMNS]
    return f"| {row.config} | {row.mix} | {row.requests} | " + " | ".join(cells) + " |"


def ranking(rows: Sequence[Row], mix: str) -> str:
    """Configurations by the mean time of an answer, the best first; = joins those within TIE."""
    there = [row for row in rows if row.mix == mix]
    orders = []
    for which in ("real", "predicted"):
        order = sorted(there, key=lambda row: getattr(row, which).answer)
        text = ""
        for before, row in zip([None, *order], order, strict=False):
            value = getattr(row, which).answer
            if before is not None:
                tie = value <= (1 + TIE) * getattr(before, which).answer
                text += " = " if tie else " < "
            text += f"{row.config} {value:.2f}"
        orders.append(text)
    wrong = wrong_pairs(there)
    verdict = "right" if not wrong else "wrong: " + ", ".join(wrong)
    return f"| {mix} | {orders[0]} | {orders[1]} | {verdict} |"


def wrong_pairs(rows: Sequence[Row]) -> list[str]:
    """Pairs that are no tie, really, and that the simulator has the other way round."""
    return [
        f"{one.config} before {other.config}"
        for one in rows
        for other in rows
        if one.real.answer * (1 + TIE) < other.real.answer
        and one.predicted.answer > other.predicted.answer
    ]


def verdict(rows: Sequence[Row]) -> str:
    found = [row.ratios[name] for row in rows for name in COLUMNS]
    near = sum(1 - NEAR <= ratio <= 1 + NEAR for ratio in found)
    far = max(found, key=lambda ratio: abs(ratio - 1))
    return f"{near} of {len(found)} figures within {NEAR:.0%}; the worst ratio is {far:.2f}."
