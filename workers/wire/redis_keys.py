"""Names and packing of what workers write to Redis and routers read.

`{cluster}:replica:<id>`  JSON ReplicaRecord, expires with its lease
`{cluster}:events:<id>`   stream; an entry has inc (incarnation), seq (+1 each) and data (packed)
`{cluster}:blocks:<id>`   hash, a snapshot: inc, data (packed ids), the seq it stands after, and at,
                          the stream entry after which to read on
`{cluster}:loads`         channel on which routers tell each other what they gave to whom
`{cluster}:plan`          JSON, cluster/autoscaler/published.Published: what the planner wants
`{cluster}:scale`         hash, pool -> JSON ByHand: what people ask for instead
`{cluster}:planner:...`   what planners know: lease, past
The braces are a hash tag: all keys of a cluster live in one slot of a Redis Cluster.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from itertools import chain

from pydantic import BaseModel

from workers.core.events import EventKind, KVEvent
from workers.core.hashing import ID_BYTES, BlockId
from workers.core.roles import RoleName

LEASE_S = 10.0
RENEW_S = 2.0
EVENTS_KEPT = 4096  # stream entries at most; a reader further behind takes a snapshot

_HEAD = struct.Struct("<cI")
_IDS = struct.Struct(f"{ID_BYTES}s" * 256)  # so many ids in one call: six times faster than slices
_CODES = {EventKind.STORED: b"S", EventKind.REMOVED: b"R", EventKind.CLEARED: b"C"}
_KINDS = {code: kind for kind, code in _CODES.items()}


class ReplicaRecord(BaseModel):
    """What a replica says of itself when it registers."""

    id: str
    incarnation: str
    address: str
    pool: str
    role: RoleName
    model: str
    kv_abi: str
    block_size: int
    context_length: int
    kv_tokens: int
    tensor_ranks: int = 1  # that share out the KV heads of each of its shards
    expert_ranks: int = 1  # that share out the experts
    hardware: str = "cpu"  # the name of a profile
    event_seq: int = 0  # the last event that stands in Redis
    metrics: str = ""  # host:port of its /metrics


def replica_key(cluster: str, replica: str) -> str:
    return f"{{{cluster}}}:replica:{replica}"


def events_key(cluster: str, replica: str) -> str:
    return f"{{{cluster}}}:events:{replica}"


def blocks_key(cluster: str, replica: str) -> str:
    return f"{{{cluster}}}:blocks:{replica}"


def loads_channel(cluster: str) -> str:
    return f"{{{cluster}}}:loads"


def plan_key(cluster: str) -> str:
    return f"{{{cluster}}}:plan"


def scale_key(cluster: str) -> str:
    return f"{{{cluster}}}:scale"


def planner_key(cluster: str, what: str) -> str:
    return f"{{{cluster}}}:planner:{what}"


def without_password(url: str) -> str:
    """A Redis URL as people may see it, without user and password. Takes broken URLs too."""
    url = re.sub(r"([?&](?:username|password)=)[^&]*", r"\1...", url)
    return re.sub(r"^([a-z]*://)?.*@", r"\1", url)


def pack_ids(blocks: Iterable[BlockId]) -> bytes:
    return b"".join(blocks)


def unpack_ids(data: bytes) -> tuple[BlockId, ...]:
    """Raises struct.error for bytes that end within an id."""
    whole = len(data) - len(data) % _IDS.size
    rest = struct.unpack(f"{ID_BYTES}s" * -(-(len(data) - whole) // ID_BYTES), data[whole:])
    return (*chain.from_iterable(_IDS.iter_unpack(data[:whole])), *rest)


def pack_events(events: Sequence[KVEvent]) -> bytes:
    """Kind byte, uint32le count, count * 16 bytes; one after the other."""
    return b"".join(
        _HEAD.pack(_CODES[event.kind], len(event.blocks)) + pack_ids(event.blocks)
        for event in events
    )


def unpack_events(data: bytes) -> list[KVEvent]:
    events, at = [], 0
    while at < len(data):
        code, count = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        end = at + count * ID_BYTES
        events.append(KVEvent(_KINDS[code], unpack_ids(data[at:end])))
        at = end
    return events
