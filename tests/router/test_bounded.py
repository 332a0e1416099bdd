"""What clients make up (tenants, ids, classes, models) leaves nothing behind that grows."""

from __future__ import annotations

import gc
from contextlib import suppress

from router.api import Call, Terms
from router.explain.trails import Trails
from tests.router.test_generation import Inside, inside
from workers.core.errors import KvasirError
from workers.core.request import SamplingParams


async def ask_as_many(it: Inside, first: int, count: int) -> None:
    """Each with names of its own; some are refused for theirs."""
    for number in range(first, first + count):
        name = f"name-{number}"
        call = Call(
            f"model-{number}" if number % 5 == 0 else "demo",
            [1 + number % 50, 2, 3],
            SamplingParams(max_tokens=1, temperature=0.0),
            request_id=name,
            cache_salt=name,
            terms=Terms(slo_class=name if number % 7 == 0 else None, tenant=name),
            also=(f"also-{name}",),
        )
        with suppress(KvasirError):
            async for _ in it.generator.generate(call):
                pass


def samples(it: Inside) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in (*it.house.metrics.registry.collect(), *it.generator._flow.book.collect())
        for sample in family.samples
    }


async def test_metrics_have_no_labels_that_clients_make_up() -> None:
    async with inside() as it:
        await ask_as_many(it, 0, 70)
        known = samples(it)
        await ask_as_many(it, 70, 70)
        assert samples(it) == known
        assert not any("name-" in str(sample) or "model-" in str(sample) for sample in known)


async def test_only_the_newest_requests_are_remembered() -> None:
    async with inside() as it:
        trails = it.generator.trails = Trails(it.house.clock, kept=40)
        await ask_as_many(it, 0, 150)
        assert not trails.find("name-51") and trails.find("name-149")
        assert len(trails.newest()) <= 40 + 10
        gc.collect()
        calls = [thing for thing in gc.get_objects() if isinstance(thing, Call)]
        assert not [call for call in calls if call.request_id.startswith("name-")]
