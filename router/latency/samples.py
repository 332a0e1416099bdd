"""The measured steps that coefficients are fitted to: recent ones, of every size there was."""

from __future__ import annotations

import numpy as np

from router.latency.terms import Floats
from workers.core.step_work import StepWork

KEPT = 512  # steps, over all sizes
OF_A_SIZE = 16  # newest steps of about the same size: a thousand of one kind say no more
HALF_LIFE = 500  # steps of a replica after which one weighs half
LEAST_WEIGHT = 0.02  # what is old is still better than what nobody has seen


class Samples:
    """Steps are kept by size: alike are those whose tokens, sequences and KV differ by less than
    two to four times. A new one takes the place of the oldest of its size; of a new size, that of
    the oldest of all."""

    def __init__(self) -> None:
        self.count = 0  # steps ever seen
        self._work = np.zeros((KEPT, len(StepWork._fields)))
        self._seconds = np.zeros(KEPT)
        self._seen = np.zeros(KEPT)
        self._used = 0
        self._places: dict[tuple[int, int, int], list[int]] = {}
        self._size_at: list[tuple[int, int, int]] = []

    def __len__(self) -> int:
        return self._used

    def add(self, work: StepWork, seconds: float) -> None:
        place = self._place(_size(work))
        self._work[place] = work
        self._seconds[place] = seconds
        self._seen[place] = self.count
        self.count += 1

    def arrays(self, replicas: int) -> tuple[Floats, Floats, Floats]:
        """Work [n, 5], seconds [n], weights [n] that halve every HALF_LIFE steps of each of so many
        replicas."""
        used = self._used
        age = self.count - 1 - self._seen[:used]
        weights = np.maximum(LEAST_WEIGHT, 0.5 ** (age / (HALF_LIFE * max(1, replicas))))
        return self._work[:used], self._seconds[:used], weights

    def _place(self, size: tuple[int, int, int]) -> int:
        places = self._places.setdefault(size, [])
        if len(places) == OF_A_SIZE:
            places.append(places.pop(0))
            return places[-1]
        if self._used < KEPT:
            place = self._used
            self._used += 1
            self._size_at.append(size)
        else:
            place = int(np.argmin(self._seen))
            others = self._places[self._size_at[place]]
            others.remove(place)
            if not others:
                del self._places[self._size_at[place]]
            self._size_at[place] = size
            places = self._places.setdefault(size, [])
        places.append(place)
        return place


def _size(work: StepWork) -> tuple[int, int, int]:
    tokens, kv, _, seqs, decode_kv = work
    return tokens.bit_length(), seqs.bit_length(), (kv + decode_kv).bit_length() // 2
