"""How much of the text of prompts the token cache knew, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from workers.text import Tokenizer


class TokenMeasures(Collector):
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._cache = tokenizer.cache

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "kvasir_prompt_chars", "characters of prompts made tokens", value=self._cache.chars
        )
        yield CounterMetricFamily(
            "kvasir_prompt_chars_missed",
            "those of them whose tokens no cache knew",
            value=self._cache.missed_chars,
        )
