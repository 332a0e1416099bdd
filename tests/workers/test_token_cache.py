"""The token cache gives the tokens that the tokenizer gives, whatever text and tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as before
from tokenizers.trainers import BpeTrainer, UnigramTrainer

from workers.token_cache import _PATTERNS, TokenCache

START, END = "<|start|>", "<|end|>"
TEXT = [
    "The river was high and the morning cold; it's 12 miles, isn't it?",
    "def step(self):\n    batch = self.schedule()\n    return run(batch)\n",
    "Größe, naïve, été, 東京 and 한국어 -- they've said: I'LL be there at 17:25.",
    "the the and and of of in in to to is is that that it it was was for for",
]
# What patterns treat apart, what Unicode calls a space and Python does or does not, and what
# normalizers change; pieces of added tokens too.
PIECES = [
    " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u2003", "\u0085", "\x1c", "\u200b", "\u0301",
    "a", "the", "The", "it's", "'S", "I'LL", "x'", "e\u0301", "\u212b", "12", "1234", "٣",
    ".", "!?", "/", "--", "<", "|>", "_", "é", "ß", "ſ", "東京", "한", "👩‍🚀", "ab cd",
    START, END, "<|start", "<mask>", "<pad>", "word", "▁",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14).map("".join)


def _trained(tokenizer: Tokenizer, *added: str | AddedToken) -> Tokenizer:
    trainer = BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>"],
        initial_alphabet=before.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    tokenizer.add_special_tokens([START, END, *added])
    return tokenizer


def _byte_level(pattern: str | None, *added: str | AddedToken) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    level = before.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [before.Split(Regex(pattern), "isolated")]
    tokenizer.pre_tokenizer = before.Sequence([*split, level])
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, *added)


def _gpt2() -> Tokenizer:
    tokenizer = _byte_level(None)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = before.ByteLevel(add_prefix_space=False)
    return tokenizer


def _stripping() -> Tokenizer:
    """As Phi-3's <|end|> takes what is behind it, and RoBERTa's <mask> what is before it."""
    return _byte_level(
        None, AddedToken("<mask>", lstrip=True, normalized=False), AddedToken("<pad>", rstrip=True)
    )


def _with_words() -> Tokenizer:
    tokenizer = _byte_level(None)
    tokenizer.add_tokens(["ab cd", AddedToken("  ", normalized=False)])
    return tokenizer


def _single_word() -> Tokenizer:
    return _byte_level(None, AddedToken("word", single_word=True, normalized=False))


def _llama2(prepend_scheme: str | None) -> Tokenizer:
    """The older conversion prepends by a normalizer, the newer one by its pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prepend_scheme is None:
        marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(marks)
    else:
        scheme = before.Metaspace("▁", prepend_scheme=prepend_scheme, split=False)
        tokenizer.pre_tokenizer = scheme
    return _trained(tokenizer)


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = before.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=160, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    tokenizer.add_special_tokens([START, END])
    return tokenizer


def _with_prefix_space() -> Tokenizer:
    tokenizer = _byte_level(None)
    tokenizer.pre_tokenizer = before.ByteLevel(add_prefix_space=True)
    return tokenizer


def _with_bos() -> Tokenizer:
    tokenizer = _gpt2()
    start, end = (tokenizer.token_to_id(token) for token in (START, END))
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{START} {START} $A {END}", special_tokens=[(START, start), (END, end)]
            ),
        ]
    )
    return tokenizer


def _lowercase() -> Tokenizer:
    tokenizer = _byte_level(None)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.NFKC()])
    return tokenizer


def _pattern(number: int) -> Callable[[], Tokenizer]:
    return lambda: _byte_level(sorted(_PATTERNS)[number])


# Each with whether it is cut at words.
KINDS: dict[str, tuple[Callable[[], Tokenizer], bool]] = {
    "gpt2": (_gpt2, True),
    **{f"pattern {number}": (_pattern(number), True) for number in range(len(_PATTERNS))},
    "bos": (_with_bos, True),
    "stripping": (_stripping, False),
    "added words": (_with_words, False),
    "single word": (_single_word, False),
    "llama2": (lambda: _llama2(None), False),
    "metaspace first": (lambda: _llama2("first"), False),
    "metaspace always": (lambda: _llama2("always"), False),
    "unigram": (_unigram, False),
    "prefix space": (_with_prefix_space, False),
    "lowercase": (_lowercase, False),
}


@cache
def _of(kind: str) -> tuple[Tokenizer, TokenCache]:
    """One cache for all examples: what one leaves behind another finds. It is small and forgets."""
    tokenizer = KINDS[kind][0]()
    return tokenizer, TokenCache(tokenizer, segment_bytes=8_000, word_bytes=8_000)


def _plain(tokenizer: Tokenizer, text: str, special: bool) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=special).ids


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(text=texts, special=st.booleans())
@example(text="", special=True)
@example(text=f"{START}user\nthe  word {END}\n {START} the\n the", special=False)
def test_tokens_are_those_of_the_tokenizer(kind: str, text: str, special: bool) -> None:
    tokenizer, kept = _of(kind)
    plain = _plain(tokenizer, text, special)
    assert kept.encode(text, add_special_tokens=special) == plain
    assert kept.encode(text, add_special_tokens=special) == plain


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_kept_where_that_is_known_to_be_right(kind: str) -> None:
    make, by_words = KINDS[kind]
    kept = TokenCache(make())
    kept.encode("the river and the morning", add_special_tokens=False)
    missed = kept.missed_chars
    kept.encode("the morning and the river", add_special_tokens=False)
    assert kept.missed_chars - missed == (0 if by_words else 25)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"single word"}))
def test_messages_before_the_last_are_known(kind: str) -> None:
    kept = TokenCache(KINDS[kind][0]())
    history = f"{START}system\nthe river{END}\n{START}user\nwas high{END}\n"
    kept.encode(history, add_special_tokens=False)
    missed = kept.missed_chars
    kept.encode(f"{history}{START}andthe", add_special_tokens=False)
    assert kept.missed_chars - missed == len(f"{START}andthe")


def test_memory_is_bounded_and_what_is_used_stays() -> None:
    kept = TokenCache(_gpt2(), segment_bytes=20_000, word_bytes=20_000)
    for number in range(2_000):
        kept.encode(f"{START}the river{END}{number} {number}", add_special_tokens=False)
        for generations in (kept._segments, kept._words):
            assert len(generations.new) + len(generations._old) <= 20_000 / 200
    missed = kept.missed_chars
    kept.encode(f"{START}the river", add_special_tokens=False)
    assert kept.missed_chars == missed


def test_what_does_not_fit_is_not_kept() -> None:
    kept = TokenCache(_gpt2(), segment_bytes=20_000)
    text = "river " * 4_000
    assert kept.encode(text, add_special_tokens=False) == _plain(_gpt2(), text, special=False)
    assert text not in kept._segments.new


def test_a_random_tokenizer_is_asked_every_time() -> None:
    tokenizer = _gpt2()
    tokenizer.model.dropout = 0.5
    kept = TokenCache(tokenizer)
    for _ in range(3):
        kept.encode(f"{START}the river", add_special_tokens=False)
    assert kept.missed_chars == kept.chars > 0
