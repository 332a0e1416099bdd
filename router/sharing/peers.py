"""What each other router said it holds on which replica: the last word of each, while it speaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from router.sharing.foreign import NOTHING, Load

SILENT_S = 3.0  # a router that says nothing for so long counts no more

Life = tuple[str, str]  # a replica and its incarnation: what was given to an old one is void


@dataclass(slots=True)
class Peer:
    """One router. `number`: of its last message. `held` has no entry that is NOTHING."""

    number: int
    heard_at: float
    held: dict[Life, Load] = field(default_factory=dict)

    @property
    def total(self) -> Load:
        total = NOTHING
        for load in self.held.values():
            total = total.plus(load)
        return total


class Peers:
    """Messages hold absolute values, so one that is lost is mended by the next that names the same
    replica, and all of them by the next whole one."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}
        self._sums: dict[Life, Load] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[tuple[str, Peer]]:
        return iter(self._peers.items())

    def __contains__(self, router: str) -> bool:
        return router in self._peers

    def told(self, life: Life) -> Load:
        """By all of them together."""
        return self._sums.get(life, NOTHING)

    def hear(
        self, router: str, number: int, rows: Mapping[Life, Load], *, whole: bool, now: float
    ) -> set[Life]:
        """Takes a message; returns where the sum changed. `whole`: what it does not name, it does
        not hold. One that is older than the last is dropped: a line that broke may have kept it."""
        peer = self._peers.get(router)
        if peer is None:
            peer = self._peers[router] = Peer(number, now)
        elif number <= peer.number:
            return set()
        peer.number, peer.heard_at = number, now
        gone = peer.held.keys() - rows.keys() if whole else ()
        changed = self._drop(peer, gone)
        for life, load in rows.items():
            before = peer.held.get(life, NOTHING)
            if load == before:
                continue
            if load == NOTHING:
                del peer.held[life]
            else:
                peer.held[life] = load
            self._move(life, before, load)
            changed.add(life)
        return changed

    def silent(self, now: float) -> set[Life]:
        """Forgets who has been silent for SILENT_S; returns where the sum changed."""
        over = [name for name, peer in self._peers.items() if now - peer.heard_at >= SILENT_S]
        changed: set[Life] = set()
        for name in over:
            changed |= self.leave(name)
        return changed

    def leave(self, router: str) -> set[Life]:
        """It is gone. Returns where the sum changed."""
        peer = self._peers.pop(router, None)
        return self._drop(peer, tuple(peer.held)) if peer is not None else set()

    def check_integrity(self) -> None:
        """The sums are those of the parts."""
        sums: dict[Life, Load] = {}
        for peer in self._peers.values():
            for life, load in peer.held.items():
                assert load != NOTHING and min(load) >= 0, (life, load)
                sums[life] = sums.get(life, NOTHING).plus(load)
        assert sums == self._sums

    def _drop(self, peer: Peer, lives: Iterable[Life]) -> set[Life]:
        changed = set(lives)
        for life in changed:
            self._move(life, peer.held.pop(life), NOTHING)
        return changed

    def _move(self, life: Life, before: Load, after: Load) -> None:
        old = self._sums.get(life, NOTHING)
        new = Load(*(s - b + a for s, b, a in zip(old, before, after, strict=True)))
        if new == NOTHING:
            self._sums.pop(life, None)
        else:
            self._sums[life] = new
