"""Which bit of a mask stands for which replica. A bit is used again only once no mask has it."""

from __future__ import annotations

FOUND_KEPT = 2048  # (mask, depth) whose answer is remembered


class Slots:
    """A replica has one bit at a time. Bits given back are `gone` until swept() says otherwise."""

    def __init__(self) -> None:
        self.live = 0  # bits of replicas that match() may name
        self.gone = 0  # bits that some masks may still have
        self._bits: dict[str, int] = {}
        self._owners: dict[int, str] = {}
        self._free: list[int] = []
        self._made = 0
        self._found: dict[tuple[int, int], dict[str, int]] = {}

    def of(self, replica: str) -> int:
        """Its bit; one of its own from now on if it had none."""
        bit = self._bits.get(replica)
        if bit is None:
            bit = self.draw()
            self.give(replica, bit)
        return bit

    def find(self, replica: str) -> int:
        """Its bit, 0 if it has none."""
        return self._bits.get(replica, 0)

    def draw(self) -> int:
        """A bit that no mask has and that is nobody's yet."""
        if self._free:
            return self._free.pop()
        self._made += 1
        return 1 << (self._made - 1)

    def give(self, replica: str, bit: int) -> None:
        """`bit` is the replica's. The one it had before is gone."""
        self.take(replica)
        self._bits[replica] = bit
        self._owners[bit] = replica
        self.live |= bit
        self._found.clear()

    def take(self, replica: str) -> int:
        """The replica has none any more; returns what it was, 0 if it had none."""
        bit = self._bits.pop(replica, 0)
        if bit:
            del self._owners[bit]
            self.live &= ~bit
            self._found.clear()
            self.drop(bit)
        return bit

    def drop(self, bit: int) -> None:
        """A bit that was drawn is nobody's, but masks may have it."""
        self.gone |= bit

    def swept(self, bits: int) -> None:
        """No mask has these any more."""
        self.gone &= ~bits
        self._free.extend(each_bit(bits))

    def at(self, mask: int, depth: int) -> dict[str, int]:
        """`depth` for each replica in a mask of live bits. Not to be changed: it is remembered,
        as a first block that all replicas hold has many names to tell."""
        found = self._found.get((mask, depth))
        if found is None:
            if len(self._found) >= FOUND_KEPT:
                self._found.clear()
            names = [self._owners[bit] for bit in each_bit(mask)]
            found = self._found[mask, depth] = dict.fromkeys(names, depth)
        return found

    def check_integrity(self) -> None:
        """Each bit ever made is free, gone, or somebody's (or being filled by who drew it)."""
        assert {name: bit for bit, name in self._owners.items()} == self._bits
        assert self.live == sum(self._owners), "live bits without an owner"
        free = sum(self._free)
        assert not (self.live & self.gone or self.live & free or self.gone & free), "a bit twice"


def each_bit(mask: int) -> list[int]:
    """The set bits, each as a mask of its own, the lowest first."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low)
        mask ^= low
    return found
