"""The table of fidelity.py: what was measured beside what was predicted, how far the real cluster
is from itself when it is asked the same again, and whether the order of configurations is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median

from cluster.simulator.route import quantile

NEAR = 0.15  # a prediction within this part counts as right
TIE = 0.05  # configurations closer than this are equally good, at least
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


def seen(
    ttft_s: Sequence[float], itl: tuple[float, float], throughput: float, answers: Sequence[float]
) -> Seen:
    first = (quantile(ttft_s, 0.5), quantile(ttft_s, 0.9))
    return Seen(*first, *itl, throughput, mean(answers))


def middle(runs: Sequence[Seen]) -> Seen:
    """The median of each figure."""
    columns = zip(*(asdict(run).values() for run in runs), strict=True)
    return Seen(*map(median, columns))


@dataclass(frozen=True, slots=True)
class Row:
    """`runs`: the real cluster's, of the same requests at the same times."""

    config: str
    mix: str
    requests: int
    runs: Sequence[Seen]
    predicted: Seen

    @property
    def real(self) -> Seen:
        return middle(self.runs)

    @property
    def ratios(self) -> dict[str, float]:
        """Predicted over real."""
        real = asdict(self.real)
        return {name: value / real[name] for name, value in asdict(self.predicted).items()}

    @property
    def spreads(self) -> dict[str, float]:
        """From the least to the most of the real runs, over their median."""
        found = {}
        for name, value in asdict(self.real).items():
            values = [getattr(run, name) for run in self.runs]
            found[name] = (max(values) - min(values)) / value
        return found


def head() -> str:
    names = " | ".join(COLUMNS.values())
    return (
        "Seconds: real / predicted (ratio; from the least real run to the most).\n\n"
        f"| configuration | mix | n | {names} |\n|" + "---|" * (3 + len(COLUMNS))
    )


def line(row: Row) -> str:
    real, predicted = asdict(row.real), asdict(row.predicted)
    cells = [
        f"{real[name]:.3g} / {predicted[name]:.3g} "
        f"({row.ratios[name]:.2f}; {row.spreads[name]:.0%})"
        for name in COLUMNS
    ]
    count = f"{len(row.runs)} x {row.requests}"
    return f"| {row.config} | {row.mix} | {count} | " + " | ".join(cells) + " |"


def ranking(rows: Sequence[Row], mix: str) -> str:
    """Configurations by the mean time of an answer, the best first; = joins those that tie."""
    there = [row for row in rows if row.mix == mix]
    orders = []
    for which in ("real", "predicted"):
        order = sorted(there, key=lambda row: getattr(row, which).answer)
        text = ""
        for before, row in zip([None, *order], order, strict=False):
            value = getattr(row, which).answer
            if before is not None:
                first = getattr(before, which).answer
                text += " = " if value <= (1 + _tie(before, row)) * first else " < "
            text += f"{row.config} {value:.2f}"
        orders.append(text)
    wrong = wrong_pairs(there)
    verdict = "right" if not wrong else "wrong: " + ", ".join(wrong)
    return f"| {mix} | {orders[0]} | {orders[1]} | {verdict} |"


def _tie(one: Row, other: Row) -> float:
    """What one configuration's answers differ by from run to run says nothing of two."""
    return max(TIE, one.spreads["answer"], other.spreads["answer"])


def wrong_pairs(rows: Sequence[Row]) -> list[str]:
    """Pairs that are no tie, really, and that the simulator has the other way round."""
    return [
        f"{one.config} before {other.config}"
        for one in rows
        for other in rows
        if one.real.answer * (1 + _tie(one, other)) < other.real.answer
        and one.predicted.answer > other.predicted.answer
    ]


def verdict(rows: Sequence[Row]) -> str:
    found = [(row.ratios[name], row.spreads[name]) for row in rows for name in COLUMNS]
    near = [abs(ratio - 1) <= NEAR for ratio, _ in found]
    unsure = sum(spread > NEAR for _, spread in found)
    both = sum(spread > NEAR for (_, spread), right in zip(found, near, strict=True) if not right)
    far = max((ratio for ratio, _ in found), key=lambda ratio: abs(ratio - 1))
    return (
        f"{sum(near)} of {len(found)} figures within {NEAR:.0%}; the worst ratio is {far:.2f}. "
        f"Real runs differ by more than {NEAR:.0%} among themselves in {unsure} figures, "
        f"{both} of them among the {len(found) - sum(near)} that are further off."
    )
