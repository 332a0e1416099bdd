from __future__ import annotations

from array import array

from workers.core.batch import Batch, Chunk
from workers.core.hashing import BlockHasher
from workers.core.request import Request, SamplingParams, Sequence
from workers.core.step_estimate import CEILING_S, FLOOR_S, KEPT, PATIENCE, StepEstimate


def batch(tokens: int, context: int) -> Batch:
    """One chunk of `tokens` that ends at `context`."""
    request = Request("r", (1,) * context, context, SamplingParams())
    sequence = Sequence(request, BlockHasher(b"", 16))
    sequence.blocks = array("i")
    return Batch((Chunk(sequence, context - tokens, tokens, sample=True),))


def test_without_a_step_nothing_is_predicted() -> None:
    estimate = StepEstimate()
    assert estimate.predict(batch(1, 10)) is None
    assert estimate.limit(batch(1, 10)) == CEILING_S


def test_the_nearest_step_predicts() -> None:
    """Ten times the tokens take at most ten times as long; a slow step in between says nothing."""
    estimate = StepEstimate()
    estimate.learn(batch(1, 1000), 0.1)
    estimate.learn(batch(100, 1000), 4.0)
    estimate.learn(batch(1, 1000), 0.7)
    assert estimate.predict(batch(1, 1000)) == 0.1
    assert estimate.predict(batch(1, 10)) == 0.1
    assert estimate.predict(batch(10, 1000)) == 1.0
    assert estimate.predict(batch(100, 1000)) == 4.0
    assert estimate.predict(batch(200, 3000)) == 4.0 * 2 * 3


def test_the_limit_has_a_floor_and_a_ceiling() -> None:
    estimate = StepEstimate()
    estimate.learn(batch(10, 100), 8.0)
    assert estimate.limit(batch(10, 100)) == PATIENCE * 8.0
    assert estimate.limit(batch(100, 100)) == CEILING_S
    estimate.learn(batch(10, 100), 0.01)
    assert estimate.limit(batch(10, 100)) == FLOOR_S


def test_old_steps_are_forgotten() -> None:
    estimate = StepEstimate()
    estimate.learn(batch(1, 10), 0.001)
    for _ in range(KEPT):
        estimate.learn(batch(1, 10), 5.0)
    assert estimate.predict(batch(1, 10)) == 5.0
