"""The pools as the registry and the workers' own reports show them: who is there, who is to come,
how long that takes, and how fast they are."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.planner.signals import PoolSpec, PoolState
from router.latency import HardwareClass, LatencyModel
from router.pool import Pool
from router.replica import Replica, ReplicaState
from workers.core.roles import RoleName
from workers.wire import worker_pb2 as worker

ENOUGH = 8  # steps of a kind, from which on the latency model goes by them
GIVE_UP_S = 600.0  # what has not come by then is asked for anew


@dataclass(slots=True)
class _Watched:
    """`waited`: since when each replica that is to be there is not. `up` None: not looked yet."""

    spec: PoolSpec
    starts_as: RoleName
    where: HardwareClass
    up: set[str] | None = None
    waited: deque[float] = field(default_factory=deque)
    took_s: list[float] = field(default_factory=list)


class Watched:
    """A PoolListener too. Each pool has a place of its name in the latency model: of the hardware
    that the config says until its replicas tell."""

    def __init__(
        self,
        specs: Sequence[PoolSpec],
        starts_as: Mapping[str, RoleName],
        where: Mapping[str, HardwareClass],
        step_tokens: int,
        latency: LatencyModel,
    ) -> None:
        self._latency = latency
        self._pools = {
            spec.name: _Watched(spec, starts_as[spec.name], where[spec.name]) for spec in specs
        }
        self._lost: set[str] = set()
        self._steps: Counter[tuple[HardwareClass, bool]] = Counter()
        for name, pool in self._pools.items():
            latency.placed(name, pool.where, step_tokens)

    @property
    def specs(self) -> list[PoolSpec]:
        """With what replicas said of their memory."""
        return [pool.spec for pool in self._pools.values()]

    def took(self, pool: str, seconds: Sequence[float]) -> None:
        """Starts of before we were there."""
        if pool in self._pools:
            self._pools[pool].took_s.extend(seconds)

    def look(self, replicas: Pool, wanted: Mapping[str, int], now: float) -> dict[str, list[float]]:
        """`wanted`: sizes that pools are brought to; without one nobody is waited for. Starts that
        are over, in seconds, by pool."""
        ended: dict[str, list[float]] = {}
        for name, pool in self._pools.items():
            up = {each.id for each in self._of(replicas, name) if each.up}
            came = len(up - pool.up) if pool.up is not None else 0
            pool.up = up
            there = sum(self._is_there(each) for each in self._of(replicas, name))
            missing = max(0, wanted.get(name, 0) - there)
            while len(pool.waited) > missing:
                since = pool.waited.popleft()
                if came:
                    came -= 1
                    ended.setdefault(name, []).append(now - since)
            while pool.waited and now - pool.waited[0] > GIVE_UP_S:
                pool.waited.popleft()
            pool.waited.extend([now] * (missing - len(pool.waited)))
            pool.took_s.extend(ended.get(name, ()))
        return ended

    def state(self, replicas: Pool, now: float) -> dict[str, PoolState]:
        """Starts that are over are told once."""
        told = {}
        for name, pool in self._pools.items():
            there = [each for each in self._of(replicas, name) if self._is_there(each)]
            to_come = len(pool.waited)
            prefill = sum(each.role == "prefill" for each in there)
            prefill += to_come * (pool.starts_as == "prefill")
            told[name] = PoolState(
                up=len(there),
                starting=tuple(now - since for since in pool.waited),
                draining=sum(
                    each.state is ReplicaState.DRAINING for each in self._of(replicas, name)
                ),
                as_prefill=prefill if pool.spec.role == "flex" else 0,
                took_s=tuple(pool.took_s),
                fitted=self._is_fitted(pool),
            )
            pool.took_s.clear()
        return told

    def decoding(self, replicas: Pool) -> tuple[int, int]:
        """Sequences that decode or wait to, and tokens that they have so far."""
        loads = [
            each.load
            for name in self._pools
            for each in self._of(replicas, name)
            if each.alive and each.role == "decode"
        ]
        sequences = sum(load.running + load.waiting for load in loads)
        return sequences, sum(load.made_tokens for load in loads)

    def flips(
        self, replicas: Pool, sizes: Mapping[str, int], as_prefill: Mapping[str, int]
    ) -> Iterator[tuple[str, RoleName]]:
        """Replicas of flex pools that are to get another role, the least busy first. Who is yet to
        come takes the role that is short, so nobody changes for its sake."""
        for name, prefill in as_prefill.items():
            up = [each for each in self._of(replicas, name) if each.up]
            up.sort(key=lambda each: (each.load.running + each.load.waiting, each.id))
            prefills = [each for each in up if each.role == "prefill"]
            decodes = [each for each in up if each.role == "decode"]
            decode = sizes[name] - prefill
            more = min(prefill - len(prefills), len(decodes) - decode)
            less = min(len(prefills) - prefill, decode - len(decodes))
            yield from ((each.id, "prefill") for each in decodes[: max(0, more)])
            yield from ((each.id, "decode") for each in prefills[: max(0, less)])

    def _of(self, replicas: Pool, name: str) -> list[Replica]:
        return [replica for replica in replicas if replica.record.pool == name]

    def _is_there(self, replica: Replica) -> bool:
        """Who was lost and is called again is not."""
        connecting = replica.state is ReplicaState.CONNECTING and replica.id not in self._lost
        return replica.up or connecting

    def _is_fitted(self, pool: _Watched) -> bool:
        prompts, decodes = (self._steps[pool.where, kind] >= ENOUGH for kind in (True, False))
        if pool.spec.role == "flex":
            return prompts and decodes
        return prompts if pool.spec.role == "prefill" else decodes

    # as a PoolListener

    def reported(self, replica: Replica, load: worker.LoadReport) -> None:
        self._lost.discard(replica.id)
        pool = self._pools.get(replica.record.pool)
        if pool is None:
            return
        record = replica.record
        pool.where = HardwareClass(
            record.hardware, record.tensor_ranks, replica.kv_abi, record.expert_ranks
        )
        self._latency.placed(pool.spec.name, pool.where, load.step_tokens)
        tokens, seqs = replica.capacity_tokens, load.max_seqs or pool.spec.max_seqs
        if (tokens, seqs) != (pool.spec.kv_tokens, pool.spec.max_seqs):
            pool.spec = replace(pool.spec, kv_tokens=tokens, max_seqs=seqs)
        for step in load.steps:
            self._steps[pool.where, step.prefill_tokens > 0] += 1

    def lost(self, replica: Replica) -> None:
        self._lost.add(replica.id)

    def forgotten(self, replica: Replica) -> None:
        self._lost.discard(replica.id)
