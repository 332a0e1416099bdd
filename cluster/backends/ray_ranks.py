"""Followers as Ray actors, each in its bundle of a placement group, on whatever hosts Ray has.

Ray is optional: it is imported where a RayLauncher is made. The leader is bundle 0 and rank r is
bundle r. A leader that is an actor of such a group itself, as a Serve replica with
`placement_group_bundles` is, uses its own; else a group is made, with its first bundle on the
leader's host. No wait for Ray is without a deadline.
"""

from __future__ import annotations

import os
import textwrap
from typing import Any, Literal

from workers.core.errors import ConfigError
from workers.parallel.follower import follow
from workers.parallel.launcher import Invitation, RankProcess

Strategy = Literal["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"]

PLACE_S = 60.0
PROBE_S = 60.0  # a worker process of Ray starts for it
LOOK_S = 1.0
SHORT = 200  # characters
ON_THIS_NODE = 0.001  # of the resource that each node has one of


class RayLauncher:
    """For one replica. ray.init() comes first; raises ConfigError where it did not.

    `cpus`: of each rank, as many as it has threads; a GPU each comes with them where the model is
    on GPUs. `strategy` as Ray's own. `place_s`: how long Ray may look for room; where it has to add
    machines for it, minutes.
    """

    def __init__(
        self, *, cpus: float = 1.0, strategy: Strategy = "PACK", place_s: float = PLACE_S
    ) -> None:
        try:
            import ray.util
        except ImportError as error:
            raise ConfigError("ranks on Ray need it: install kvasir[ray]") from error
        if not ray.is_initialized():
            raise ConfigError("ranks on Ray need a Ray that this process has joined: ray.init()")
        self._ray: Any = ray
        self._cpus = cpus
        self._strategy = strategy
        self._place_s = place_s
        self._group: Any = None
        self._owned = False
        self._bundles: list[int] = []  # of ranks 0, 1, ...
        self.host: str | None = ray.util.get_node_ip_address()

    def reserve(self, ranks: int, on_gpu: bool) -> None:
        current = self._ray.util.get_current_placement_group()
        self._owned = current is None or current.bundle_count < ranks
        self._group = self._make_group(ranks, on_gpu) if self._owned else current
        self._bundles = list(range(ranks))
        if on_gpu and self._owned:
            try:
                self._find_own_gpu()
            except BaseException:
                self.close()
                raise

    def start(self, invitation: Invitation) -> RankProcess:
        bundle = self._bundles[invitation.rank]
        share = self._group.bundle_specs[bundle]
        try:
            actor = (
                self._ray.remote(_Follower)
                .options(
                    num_cpus=share.get("CPU", 0),
                    num_gpus=share.get("GPU", 0),
                    max_restarts=0,
                    scheduling_strategy=self._in_bundle(bundle),
                )
                .remote()
            )
            return _Actor(self._ray, actor, actor.follow.remote(invitation))
        except self._ray.exceptions.RayError as error:
            raise OSError(_last_line(error)) from error

    def close(self) -> None:
        group, self._group = self._group, None
        if group is not None and self._owned and self._ray.is_initialized():
            self._ray.util.remove_placement_group(group)

    def _make_group(self, ranks: int, on_gpu: bool) -> Any:
        bundle = {"CPU": self._cpus} | ({"GPU": 1.0} if on_gpu else {})
        first = bundle | {f"node:{self.host}": ON_THIS_NODE}
        others = [bundle] * (ranks - 1)
        group = self._ray.util.placement_group([first, *others], strategy=self._strategy)
        if group.wait(self._place_s):
            return group
        self._ray.util.remove_placement_group(group)
        free = self._ray.available_resources()
        there = ", ".join(f"{free.get(name, 0.0):g} {name}" for name in bundle)
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())
        raise ConfigError(
            f"Ray finds no place within {self._place_s:g} s for {ranks} ranks of {wanted} each "
            f"({self._strategy}, the first on {self.host}); the cluster has {there} free"
        )

    def _find_own_gpu(self) -> None:
        """A leader that Ray did not start has a GPU which Ray knows nothing of: its bundle is the
        one with that, so that no follower gets it."""
        probe = self._ray.remote(_node_and_gpus)
        asked = [
            probe.options(
                num_cpus=0, num_gpus=1, scheduling_strategy=self._in_bundle(bundle)
            ).remote()
            for bundle in self._bundles
        ]
        try:
            seen: list[tuple[str, list[str]]] = self._ray.get(asked, timeout=PROBE_S)
        except self._ray.exceptions.RayError as error:
            raise ConfigError(
                f"Ray does not say which GPUs it gives: {_last_line(error)}"
            ) from error
        own = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        here = (self._ray.get_runtime_context().get_node_id(), [own])
        if here not in seen:
            raise ConfigError(
                f"GPU {own} of this process is not among those that Ray has free: lead from an "
                "actor in the first bundle of a placement group, or make it visible to Ray"
            )
        mine = seen.index(here)
        self._bundles[0], self._bundles[mine] = self._bundles[mine], self._bundles[0]

    def _in_bundle(self, bundle: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return PlacementGroupSchedulingStrategy(self._group, bundle)


class _Follower:
    """The actor. Its only call ends with its process."""

    def follow(self, invitation: Invitation) -> None:
        follow(invitation)


class _Actor:
    """A RankProcess."""

    def __init__(self, ray: Any, actor: Any, life: Any) -> None:
        """`life`: the call that lasts as long as the actor."""
        self._ray = ray
        self._actor = actor
        self._life = life

    def ended(self) -> str | None:
        # Any other question would start a new Ray where ours is gone.
        if not self._ray.is_initialized():
            return "its Ray was shut down"
        over, _ = self._ray.wait([self._life], timeout=0)
        if not over:
            return None
        try:
            self._ray.get(self._life, timeout=LOOK_S)
        except self._ray.exceptions.RayError as error:
            return _last_line(error)
        return "its actor ended"

    def kill(self) -> None:
        """A stopped process is there for some seconds more, until Ray has lost patience."""
        if self.ended() is None:
            self._ray.kill(self._actor, no_restart=True)


def _node_and_gpus() -> tuple[str, list[str]]:
    import ray

    context = ray.get_runtime_context()
    return context.get_node_id(), context.get_accelerator_ids()["GPU"]


def _last_line(error: Exception) -> str:
    """Where Ray says what happened, however much stands before and after."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return textwrap.shorten(lines[-1], SHORT, placeholder=" ...")
