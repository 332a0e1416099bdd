"""The chain of block ids: compiled and in plain Python."""

from __future__ import annotations

import random
from hashlib import blake2b

import pytest

from workers.core import hashing, plain_chain
from workers.core.hashing import ID_BYTES, BlockHasher, block_ids

LAST = blake2b(b"before", digest_size=ID_BYTES).digest()


@pytest.mark.parametrize("size", [1, 3, 16, 28, 29, 60, 61, 256])
def test_compiled_and_plain_chains_say_the_same(size: int) -> None:
    """28 tokens and the id before them just fill one input of the hash, 60 two."""
    compiled = pytest.importorskip("workers.core._chain", reason="nobody compiled chain.c")
    assert hashing.chain is compiled.chain
    rng = random.Random(size)
    tokens = [rng.randrange(-(1 << 31), 1 << 31) for _ in range(5 * size)]
    for first in (0, size, 5 * size):
        args = LAST, tokens, first, 5 * size, size
        ids = plain_chain.chain(*args)
        assert compiled.chain(*args) == ids and len(ids) == 5 - first // size
    assert compiled.chain(LAST, tuple(tokens), 0, 2 * size, size) == plain_chain.chain(
        LAST, tokens, 0, 2 * size, size
    )


@pytest.mark.parametrize("chain", [hashing.chain, plain_chain.chain])
def test_a_token_beyond_32_bits_has_no_id(chain) -> None:
    with pytest.raises(Exception, match=r"32 bits|format requires"):
        chain(LAST, [1 << 31], 0, 1, 1)


def test_a_compiled_chain_refuses_what_is_no_block() -> None:
    chain = pytest.importorskip("workers.core._chain", reason="nobody compiled chain.c").chain
    for wrong in ((b"short", [1], 0, 1, 1), (LAST, [1], 0, 2, 1), (LAST, [1], 0, 1, 0)):
        with pytest.raises(ValueError, match="no such blocks"):
            chain(*wrong)
    with pytest.raises(TypeError):
        chain(LAST, ["text"], 0, 1, 1)


def test_ids_do_not_depend_on_how_a_sequence_grew() -> None:
    tokens = list(range(100, 180))
    hasher = BlockHasher(b"space", 16)
    for end in (5, 16, 17, 47, 80):
        hasher.extend(tokens[:end])
    assert hasher.ids == block_ids(tokens, b"space", 16)
