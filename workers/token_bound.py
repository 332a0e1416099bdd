"""How few tokens a text can have, known without tokenising it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

_COMPOSED = 4  # code points that NFC makes one of, at most


def longest_token(backend: tokenizers.Tokenizer) -> int | None:
    """Characters of a text that one token can stand for, at most; None = there is no such bound.

    There is one where every character ends up in a token: BPE over all bytes, and nothing before
    it that drops or joins characters but what is known here. Spaces beside a token that strips them
    and words that are unknown as a whole have no bound.
    """
    vocab = backend.get_vocab(with_added_tokens=True)
    before = list(_parts(backend.pre_tokenizer))
    if not isinstance(backend.model, models.BPE) or not _knows_all_bytes(backend, vocab, before):
        return None
    if any(added.lstrip or added.rstrip for added in backend.get_added_tokens_decoder().values()):
        return None
    if any(_drops(part) for part in before):
        return None
    longest = max(map(len, vocab))
    for part in _parts(backend.normalizer):
        if part["type"] == "NFC":
            longest *= _COMPOSED
        elif part["type"] != "Prepend" and part != _SPACES_MARKED:
            return None
    return longest


_SPACES_MARKED = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def _knows_all_bytes(
    backend: tokenizers.Tokenizer, vocab: dict[str, int], before: list[dict[str, Any]]
) -> bool:
    if backend.model.byte_fallback:
        return all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    in_bytes = any(part["type"] == "ByteLevel" for part in before)
    return in_bytes and all(letter in vocab for letter in pre_tokenizers.ByteLevel.alphabet())


def _drops(part: dict[str, Any]) -> bool:
    if part["type"] == "Split":
        return bool(part["behavior"] == "Removed")
    return part["type"] not in ("ByteLevel", "Metaspace", "Digits")


def _parts(component: Any) -> Iterator[dict[str, Any]]:
    """Normalizers and pre-tokenizers as tokenizer.json writes them, sequences taken apart."""
    if component is None:
        return
    written = json.loads(component.__getstate__())
    if written["type"] != "Sequence":
        yield written
        return
    for name in ("normalizers", "pretokenizers"):
        yield from written.get(name, ())
