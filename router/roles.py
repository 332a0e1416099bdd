"""Changing the role of a replica: asked of its worker, and believed when it reports it."""

from __future__ import annotations

import asyncio

from router.pool import Pool
from workers.core.errors import ReplicaNotFound, Unavailable
from workers.wire import common_pb2 as common
from workers.wire.codec import role_from_wire

REPORT_S = 10.0


async def set_role(pool: Pool, name: str, role: common.Role) -> common.Role:
    """Its role before; from the return on placement knows the new one. Raises ReplicaNotFound,
    InvalidRequest for a role that there is not, Unavailable where the worker does not say so."""
    replica = pool.get(name)
    if replica is None:
        raise ReplicaNotFound(name, sorted(each.id for each in pool))
    was = replica.role_on_wire
    await replica.client.set_role(role)
    try:
        async with asyncio.timeout(REPORT_S):
            while replica.role != role_from_wire(role):
                await pool.wait_changed()
    except TimeoutError:
        raise Unavailable(f"replica {name} does not report its new role") from None
    return was
