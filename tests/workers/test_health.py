"""What a worker tells gRPC health probes."""

from __future__ import annotations

from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from workers.health import WORKER, Health

SERVING, NOT_SERVING = 1, 2


class Refused(Exception):
    pass


class Context:
    async def abort(self, code: Any, details: str) -> None:
        raise Refused(f"{code.name}: {details}")


def asked(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


@pytest.mark.parametrize(("ready", "status"), [(False, NOT_SERVING), (True, SERVING)])
async def test_it_serves_while_it_may_get_requests_and_lives_always(
    ready: bool, status: int
) -> None:
    health = Health(lambda: ready)
    assert (await health.Check(asked(WORKER), Context())).status == status
    assert (await health.Check(asked(""), Context())).status == SERVING


async def test_who_watches_hears_of_each_change() -> None:
    states = iter([False, False, True, True, False])
    watch = Health(lambda: next(states)).Watch(asked(WORKER), Context())
    seen = [(await anext(watch)).status for _ in range(3)]
    await watch.aclose()  # type: ignore[attr-defined]
    assert seen == [NOT_SERVING, SERVING, NOT_SERVING]


async def test_a_service_that_is_not_there_is_not_found() -> None:
    with pytest.raises(Refused, match="NOT_FOUND: no service somebody"):
        await Health(lambda: True).Check(asked("somebody"), Context())
