"""Moves a running sequence, now and then, from a decode replica that is full to one that is not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from router.dispatch import Dispatcher
from router.replica import Replica
from workers.core.errors import KvasirError

log = logging.getLogger(__name__)

EVERY_S = 1.0  # one sequence; what it did shows in the load before the next one
FULL = 0.95  # of the pages


def overloaded(replicas: Iterable[Replica]) -> Replica | None:
    """The fullest decode replica that another one of its kind could relieve: that one has less than
    half its load."""
    decoding = [replica for replica in replicas if replica.up and replica.role == "decode"]
    full = [replica for replica in decoding if _full(replica)]
    relieved = [
        replica
        for replica in full
        if any(
            other.kv_abi == replica.kv_abi and 2 * other.kv_tokens < replica.kv_tokens
            for other in decoding
        )
    ]
    return max(relieved, key=lambda replica: replica.kv_tokens, default=None)


async def rebalance(
    replicas: Iterable[Replica], dispatcher: Dispatcher, every_s: float = EVERY_S
) -> None:
    """Until cancelled. What does not want to move, stays."""
    while True:
        await asyncio.sleep(every_s)
        replica = overloaded(replicas)
        if replica is None:
            continue
        try:
            await dispatcher.relieve(replica)
        except KvasirError as error:
            log.info("%s is not relieved: %s", replica.id, error.message)


def _full(replica: Replica) -> bool:
    """Requests wait for its pages, or soon will."""
    load = replica.load
    return load.waiting > 0 or load.blocks_used >= FULL * max(1, load.blocks_total)
