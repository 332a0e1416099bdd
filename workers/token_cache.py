"""Tokens of texts that were seen before, whole or in parts, exactly as the tokenizer makes them.

A text is cut where the tokenizer cuts it anyway, so that each part's tokens depend on nothing but
the part:

1. Before an added token such as <|im_start|>, which chat templates put between messages. Tokenizers
   take these out first and treat what lies between by itself.
2. For byte-level BPE with one of the split patterns in _PATTERNS: before a space that follows
   something other than whitespace. No alternative of these patterns crosses such a place or looks
   over it, merges stay within what the pattern matches, and NFC composes nothing with a space.

Parts of the first kind are kept with their tokens, and so are the words that the second kind gives;
both within a fixed memory. Where nothing can be proven of a tokenizer it is asked every time.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from threading import Lock
from typing import Any, TypeAlias

import tokenizers
from tokenizers import AddedToken, models

Tokens: TypeAlias = tuple[int, ...]

SEGMENT_BYTES = 48 << 20
WORD_BYTES = 16 << 20
MOST_WORD_CHARS = 64  # longer ones hardly come again
MOST_ADDED_TOKENS = 1024  # looking for more costs more than it saves
_ENTRY_BYTES = 200  # of a dict's entry and a tuple
_OLD_INT, _NEW_INT = 8, 40  # bytes that one more integer takes in a tuple

# GPT-2's, Llama 3's, Qwen 2's and 3's, and that of o200k (gpt-oss).
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_PATTERNS = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
    }
)
_PLAIN_POST_PROCESSORS = {"ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing"}


class TokenCache:
    """`chars` were asked for, of which `missed_chars` had to be tokenised. Safe in threads, where
    these two may lose a count."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        word_bytes: int = WORD_BYTES,
    ) -> None:
        """`backend` must not change any more."""
        self.chars = 0
        self.missed_chars = 0
        self._backend = backend
        added = list(backend.get_added_tokens_decoder().values())
        at_random = isinstance(backend.model, models.BPE) and backend.model.dropout is not None
        self._added = None if at_random else _AddedTokens(added)
        self._by_words = not at_random and _cuts_at_spaces(backend, added)
        self._around = _around(backend)
        self._words = _Generations(word_bytes, _NEW_INT)
        # made of words, segments share their integers
        self._segments = _Generations(segment_bytes, _OLD_INT if self._by_words else _NEW_INT)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """What the tokenizer makes of it."""
        self.chars += len(text)
        if not add_special_tokens:
            return self._encode(text)
        if self._around is None:
            return self._plainly(text, add_special_tokens=True)
        before, after = self._around
        return [*before, *self._encode(text), *after]

    def _encode(self, text: str) -> list[int]:
        if self._added is None:
            return self._plainly(text)
        tokens: list[int] = []
        for segment in self._added.cut(text):
            tokens.extend(self._segment(segment))
        return tokens

    def _segment(self, text: str) -> Tokens:
        return self._kept(text, self._by_word if self._by_words else self._plainly)

    def _kept(self, text: str, make: Callable[[str], list[int]]) -> Tokens:
        kept = self._segments.get(text)
        if kept is None:
            kept = tuple(make(text))
            self._segments.put(text, kept)
        return kept

    def _by_word(self, text: str) -> list[int]:
        """Words stand between spaces; each is kept with the tokens that it has behind one."""
        head, *words = text.split(" ")
        found = list(map(self._words.new.get, words))
        unknown = [place for place, ids in enumerate(found) if ids is None]
        inner = unknown[:-1] if unknown[-1:] == [len(words) - 1] else unknown
        if _ends_in_whitespace(head) or any(_is_open(words[place]) for place in inner):
            head, words = _join_at_whitespace(head, words)
            found = list(map(self._words.new.get, words))
            unknown = [place for place, ids in enumerate(found) if ids is None]
        if unknown:
            learned = self._learn({words[place] for place in unknown})
            for place in unknown:
                found[place] = learned[words[place]]
        # Few heads begin nearly all texts, and asking for one costs as much as a hundred words.
        tokens = list(self._kept(head, self._plainly)) if head else []
        tokens.extend(chain.from_iterable(found))  # type: ignore[arg-type]
        return tokens

    def _learn(self, words: set[str]) -> dict[str, Tokens]:
        """The tokens of words that are not in the new generation."""
        learned = {word: ids for word in words if (ids := self._words.get(word)) is not None}
        unknown = [word for word in words if word not in learned]
        texts = [f" {word}" for word in unknown]
        self.missed_chars += sum(map(len, texts))
        encoded = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        for word, one in zip(unknown, encoded, strict=True):
            learned[word] = ids = tuple(one.ids)
            # not those behind which no cut is allowed: in the middle of a text none is looked for
            if len(word) <= MOST_WORD_CHARS and not _is_open(word):
                self._words.put(word, ids)
        return learned

    def _plainly(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        self.missed_chars += len(text)
        # encode() builds offsets too, and holds the interpreter for seconds while it does
        batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = batch[0].ids
        return ids


class _AddedTokens:
    """Those that stand in the raw text, found as the tokenizer does: from left to right, the
    longest first."""

    def __init__(self, added: Sequence[AddedToken]) -> None:
        raw = {token.content: token for token in added if not token.normalized}
        # Nothing before such a token is looked at together with it.
        self._cuts = {
            content
            for content, token in raw.items()
            if not token.lstrip and not content[:1].isspace()
        }
        hard = len(raw) > MOST_ADDED_TOKENS or any(token.single_word for token in added)
        self._find: re.Pattern[str] | None = None
        if self._cuts and not hard:
            self._find = re.compile("|".join(map(re.escape, sorted(raw, key=len, reverse=True))))

    def cut(self, text: str) -> Iterator[str]:
        """Each part but the first begins with such a token."""
        start = 0
        for match in self._find.finditer(text) if self._find else ():
            if match.group() in self._cuts and match.start() > start:
                yield text[start : match.start()]
                start = match.start()
        yield text[start:]


class _Generations:
    """Texts with their tokens, in about `most_bytes`. They are put into the new generation; when it
    is full, the old one is dropped and it becomes the old one. What is used is put in again."""

    def __init__(self, most_bytes: int, token_bytes: int) -> None:
        self.new: dict[str, Tokens] = {}
        self._old: dict[str, Tokens] = {}
        self._bytes = 0
        self._most_bytes = most_bytes // 2
        self._token_bytes = token_bytes
        self._lock = Lock()

    def get(self, text: str) -> Tokens | None:
        found = self.new.get(text)
        if found is None:
            found = self._old.get(text)
            if found is not None:
                self.put(text, found)
        return found

    def put(self, text: str, tokens: Tokens) -> None:
        size = _ENTRY_BYTES + sys.getsizeof(text) + self._token_bytes * len(tokens)
        with self._lock:
            if size > self._most_bytes or text in self.new:
                return
            if self._bytes + size > self._most_bytes:
                self._old, self.new, self._bytes = self.new, {}, 0
            self.new[text] = tokens
            self._bytes += size


def _join_at_whitespace(head: str, words: Iterable[str]) -> tuple[str, list[str]]:
    """Words between which no cut is allowed, as one."""
    joined = [head]
    is_open = _ends_in_whitespace(head)
    for word in words:
        if is_open:
            joined[-1] += " " + word
        else:
            joined.append(word)
        is_open = _is_open(word)
    return joined[0], joined[1:]


def _is_open(word: str) -> bool:
    """No cut is allowed behind it: what is before the next space is whitespace, or a space."""
    return not word or word[-1].isspace()  # whitespace to Python is all that is \s, and more


def _ends_in_whitespace(head: str) -> bool:
    return bool(head) and _is_open(head)


def _cuts_at_spaces(backend: tokenizers.Tokenizer, added: Sequence[AddedToken]) -> bool:
    model = backend.model
    return (
        isinstance(model, models.BPE)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix)
        and all(part == {"type": "NFC"} for part in _parts(backend.normalizer))
        and _has_known_pattern(_parts(backend.pre_tokenizer))
        and not any(map(_may_cross_a_space, added))
    )


def _may_cross_a_space(token: AddedToken) -> bool:
    strips = token.lstrip or token.rstrip or token.single_word
    return strips or any(map(str.isspace, token.content))


def _has_known_pattern(parts: Sequence[Mapping[str, Any]]) -> bool:
    """ByteLevel with its own pattern, GPT-2's, or behind a Split with a known one."""
    if not parts or parts[-1]["type"] != "ByteLevel" or parts[-1]["add_prefix_space"]:
        return False
    if len(parts) == 1:
        return bool(parts[0]["use_regex"])
    split, level = parts[0], parts[-1]
    return (
        len(parts) == 2
        and not level["use_regex"]
        and split["type"] == "Split"
        and split["pattern"].get("Regex") in _PATTERNS
        and split["behavior"] == "Isolated"
        and not split["invert"]
    )


def _around(backend: tokenizers.Tokenizer) -> tuple[Sequence[int], Sequence[int]] | None:
    """The tokens that stand before and after every text; None where more may happen to it."""
    parts = _parts(backend.post_processor)
    if not all(part["type"] in _PLAIN_POST_PROCESSORS for part in parts):
        return None
    for part in parts:
        if sum("Sequence" in piece for piece in part.get("single", [{"Sequence": {}}])) != 1:
            return None
    probe = backend.encode("a", add_special_tokens=True)
    given = [place for place, mark in enumerate(probe.special_tokens_mask) if not mark]
    return (probe.ids[: given[0]], probe.ids[given[-1] + 1 :]) if given else None


def _parts(component: Any) -> list[dict[str, Any]]:
    """As tokenizer.json writes them, sequences taken apart."""
    if component is None:
        return []
    written = json.loads(component.__getstate__())
    if written["type"] != "Sequence":
        return [written]
    names = ("normalizers", "pretokenizers", "processors")
    return [part for name in names for part in written.get(name, ())]
