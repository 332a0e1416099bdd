"""How long a step may take before it counts as stuck."""

from __future__ import annotations

from collections import deque

from workers.core.batch import Batch

PATIENCE = 3.0  # times the predicted seconds
FLOOR_S = 10.0  # a busy machine is no stuck step
CEILING_S = 120.0  # and where nothing is known yet
KEPT = 64


class StepEstimate:
    """From recent steps: one of more tokens or more context takes at most as many times as long,
    and of all that follows from that the least is the prediction."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, int, float]] = deque(maxlen=KEPT)

    def learn(self, batch: Batch, seconds: float) -> None:
        self._steps.append((batch.num_tokens, batch.context_tokens, seconds))

    def predict(self, batch: Batch) -> float | None:
        """Seconds; None before the first step."""
        tokens, context = batch.num_tokens, batch.context_tokens
        return min(
            (
                seconds * max(1.0, tokens / num_tokens) * max(1.0, context / context_tokens)
                for num_tokens, context_tokens, seconds in self._steps
            ),
            default=None,
        )

    def limit(self, batch: Batch) -> float:
        """Seconds after which it is stuck."""
        predicted = self.predict(batch)
        if predicted is None:
            return CEILING_S
        return min(CEILING_S, max(FLOOR_S, PATIENCE * predicted))
