"""Every worker's tickets and pairs, asked of all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from router.replica import Replica
from workers.core.errors import KvasirError
from workers.wire import admin_pb2 as admin


async def ask_tickets(replicas: Iterable[Replica]) -> admin.ClusterTickets:
    """As long as the slowest call may take: CONTROL_TIMEOUT_S. Who does not answer says why."""
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(_ask(replica)) for replica in replicas]
    answers = sorted((task.result() for task in asked), key=lambda answer: answer.replica)
    return admin.ClusterTickets(replicas=answers)


async def _ask(replica: Replica) -> admin.ReplicaTickets:
    try:
        held = await replica.client.tickets()
    except KvasirError as error:
        return admin.ReplicaTickets(replica=replica.id, error=error.message)
    return admin.ReplicaTickets(replica=replica.id, held=held)
