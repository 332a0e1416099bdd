"""Tokenizer and TextStream: what is streamed equals what is decoded, however it is cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from workers.core.errors import CheckpointError, InvalidRequest
from workers.text import TextStream, Tokenizer
from workers.token_bound import longest_token

CORPUS = ["The quick brown fox jumps over the lazy dog. ", "stop stopping STOP\n\n", "naïve café "]
SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}"
    "<|user|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level() -> tokenizers.Tokenizer:
    """As Llama 3 and Qwen: any text is bytes."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    return backend


def sentencepiece_like() -> tokenizers.Tokenizer:
    """As Llama 2: words carry their space in front, unknown characters fall back to bytes."""
    words = ["▁", "▁a", "▁b", "a", "b", "st", "op", "▁stop", ".", "\n"]
    pieces = ["<unk>", *SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces + words + letters))}
    merges = [("s", "t"), ("o", "p"), ("▁", "a"), ("▁", "b")]
    model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    return backend


def composing() -> tokenizers.Tokenizer:
    """As Qwen: letters and their marks become one character first."""
    backend = byte_level()
    backend.normalizer = normalizers.NFC()
    return backend


BACKENDS = {"byte_level": byte_level, "sentencepiece_like": sentencepiece_like}


def write(folder: Path, backend: tokenizers.Tokenizer, **config: Any) -> str:
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module", params=list(BACKENDS))
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    return Tokenizer.load(write(tmp_path_factory.mktemp("tok"), BACKENDS[request.param]()))


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write(tmp_path_factory.mktemp("bytes"), byte_level()))


def stream(
    tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = (), **kwargs: Any
) -> tuple[str, str | None]:
    text = TextStream(tokenizer, kwargs.pop("context", ()), stop, **kwargs)
    pieces = [text.push(token) for token in ids]
    return "".join([*pieces, text.finish()]), text.stopped


def cut_at_first(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The rule by itself: the earliest end wins, then the longest."""
    ends = [(text.find(s) + len(s), -len(s), s) for s in stops if s in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


TEXTS = st.text(st.sampled_from("ab stop.\né€😀👩‍👧🇩🇪漢字"), max_size=40)


@settings(max_examples=150)
@given(text=TEXTS | st.text(st.characters(exclude_characters="\ufffd", codec="utf-8"), max_size=20))
def test_streamed_text_is_the_decoded_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert stream(tokenizer, ids) == (tokenizer.decode(ids), None)


@settings(max_examples=200)
@given(data=st.data())
def test_any_bytes_stream_as_they_decode(bytes_tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Tokens in any order, so also bytes that are no UTF-8, in runs longer than what is held."""
    tokens = st.integers(0, bytes_tokenizer.vocab_size + 3)
    broken = st.sampled_from(bytes_tokenizer.encode("ü€😀\ufffd"))
    ids = data.draw(st.lists(tokens | broken, max_size=60))
    assert stream(bytes_tokenizer, ids) == (bytes_tokenizer.decode(ids), None)


@settings(max_examples=200)
@given(
    text=st.text(st.sampled_from("abst op.é😀"), max_size=30),
    stops=st.lists(st.text(st.sampled_from("abst op.é"), min_size=1, max_size=5), max_size=4),
)
def test_stop_strings_cut_the_decoded_text(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    ids = tokenizer.encode(text)
    assert stream(tokenizer, ids, tuple(stops)) == cut_at_first(tokenizer.decode(ids), tuple(stops))


@settings(max_examples=100)
@given(prompt=TEXTS, text=TEXTS)
def test_the_context_decides_how_the_output_begins(
    tokenizer: Tokenizer, prompt: str, text: str
) -> None:
    context = tokenizer.encode(prompt)
    ids = tokenizer.encode(text)
    before = tokenizer.decode(context)
    if not before.endswith("\ufffd"):
        expected = tokenizer.decode(context + ids)[len(before) :]
        assert stream(tokenizer, ids, context=context) == (expected, None)


def test_pieces_are_whole_characters(bytes_tokenizer: Tokenizer) -> None:
    text = TextStream(bytes_tokenizer, ())
    pieces = [text.push(token) for token in bytes_tokenizer.encode("😀ü")]
    assert pieces == ["", "", "", "😀", "", "ü"]


def test_a_run_of_broken_bytes_does_not_grow_the_window(bytes_tokenizer: Tokenizer) -> None:
    _, token = bytes_tokenizer.encode("ü")
    text = TextStream(bytes_tokenizer, ())
    given_out = sum(len(text.push(token)) for _ in range(1000))
    assert 990 <= given_out < 1000
    assert len(text._pending) + len(text._shown) < 20
    assert given_out + len(text.finish()) == 1000


def test_overlapping_stop_strings(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("xabcdy")
    assert stream(bytes_tokenizer, ids, ("bcd", "c")) == ("xab", "c")
    assert stream(bytes_tokenizer, ids, ("cd", "abcd")) == ("x", "abcd")
    assert stream(bytes_tokenizer, ids, ("ab", "abcd")) == ("x", "ab")
    assert stream(bytes_tokenizer, bytes_tokenizer.encode("aaab"), ("aab",)) == ("a", "aab")


def test_after_a_stop_nothing_more_comes(bytes_tokenizer: Tokenizer) -> None:
    text = TextStream(bytes_tokenizer, (), ("b",))
    pieces = [text.push(token) for token in bytes_tokenizer.encode("axb")]
    assert "".join(pieces) == "ax" and text.stopped == "b"
    assert text.push(bytes_tokenizer.encode("z")[0]) == "" and text.finish() == ""


def test_what_may_become_a_stop_is_held_and_given_back(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("x##y")
    assert len(ids) == 4
    text = TextStream(bytes_tokenizer, (), ("###",))
    assert [text.push(token) for token in ids] == ["x", "", "", "##y"]
    assert stream(bytes_tokenizer, bytes_tokenizer.encode("x##"), ("###",)) == ("x##", None)


def test_stop_strings_wait_for_min_tokens(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("x#y#z")
    assert stream(bytes_tokenizer, ids, ("#",), min_tokens=2) == ("x#y", "#")
    assert stream(bytes_tokenizer, ids, ("#",), min_tokens=9) == ("x#y#z", None)


def test_special_tokens_make_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab")
    eos = tokenizer.eos_token_ids[0]
    assert tokenizer.decode([eos, *ids, eos]) == "ab"
    assert stream(tokenizer, [eos, *ids, eos]) == ("ab", None)
    assert tokenizer.token_text(eos) == "</s>"


def test_token_text_keeps_the_space_in_front(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a b")
    assert "".join(tokenizer.token_text(token) for token in ids).lstrip() == "a b"
    assert tokenizer.token_text(ids[-1]).endswith("b")
    assert tokenizer.token_text(10**6) == ""


def test_chat_template(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, byte_level(), chat_template=TEMPLATE))
    messages = [{"role": "user", "content": "hi"}]
    ids = tokenizer.apply_chat_template(messages)
    assert [tokenizer.token_text(ids[0]), tokenizer.token_text(ids[-1])] == ["<s>", "<|assistant|>"]
    assert "".join(map(tokenizer.token_text, ids)) == "<s><|user|>hi</s><|assistant|>"
    with pytest.raises(InvalidRequest, match="system comes first"):
        tokenizer.apply_chat_template([*messages, {"role": "system", "content": "no"}])


def test_chat_template_equals_transformers(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    template = (
        "{%- for m in messages %}\n    {%- if loop.index > 3 %}{% break %}{% endif %}\n"
        "  {{ m | tojson }}\n {% generation %}x{% endgeneration %}{% endfor %}\n{{ eos_token }}"
    )
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
    folder = write(tmp_path, byte_level(), eos_token="</s>", chat_template=named)
    messages = [{"role": "user", "content": f"<b> & é {i}"} for i in range(5)]
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert Tokenizer.load(folder).apply_chat_template(messages) == expected


def test_the_template_file_goes_before_the_config(tmp_path: Path) -> None:
    folder = write(tmp_path, byte_level(), chat_template="config")
    (tmp_path / "chat_template.jinja").write_text("file {{ strftime_now('%Y') | length }}")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode(tokenizer.apply_chat_template([])) == "file 4"


@pytest.mark.parametrize("add_bos, expected", [(True, ["<s>"]), (False, []), (None, [])])
def test_bos_where_the_config_says(
    tmp_path: Path, add_bos: bool | None, expected: list[str]
) -> None:
    config = {} if add_bos is None else {"add_bos_token": add_bos}
    tokenizer = Tokenizer.load(write(tmp_path, byte_level(), **config))
    ids = tokenizer.encode("hi")
    assert [tokenizer.token_text(t) for t in ids if t in tokenizer.special_ids] == expected


def test_eos_ids_come_from_all_files(tmp_path: Path) -> None:
    folder = write(tmp_path, byte_level())
    assert Tokenizer.load(folder).eos_token_ids == (1,)
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert Tokenizer.load(folder).eos_token_ids == (7, 1)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 1]}')
    assert Tokenizer.load(folder).eos_token_ids == (3, 1)


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(str(tmp_path))
    folder = write(tmp_path, byte_level(), chat_template="{% for %}")
    with pytest.raises(CheckpointError, match="chat template is broken"):
        Tokenizer.load(folder)
    folder = write(tmp_path, byte_level(), chat_template=5)
    with pytest.raises(CheckpointError, match="chat template is not a text"):
        Tokenizer.load(folder)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not a JSON object"):
        Tokenizer.load(folder)


def test_without_a_template_chat_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("backend", [byte_level, sentencepiece_like, composing])
@given(text=st.text() | st.text("a ̈́ᾳ<|s>", min_size=1))
@settings(max_examples=80)
def test_a_text_never_has_fewer_tokens_than_said(
    backend: Callable[[], tokenizers.Tokenizer], text: str
) -> None:
    bound = longest_token(backend())
    assert bound is not None
    assert len(text) <= bound * len(backend().encode(text, add_special_tokens=False).ids)


def _words() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def _stripped() -> tokenizers.Tokenizer:
    backend = byte_level()
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    return backend


def _dropping() -> tokenizers.Tokenizer:
    backend = byte_level()
    dropped = pre_tokenizers.Split(" ", "removed")
    backend.pre_tokenizer = pre_tokenizers.Sequence([dropped, pre_tokenizers.ByteLevel()])
    return backend


def _greedy_for_spaces() -> tokenizers.Tokenizer:
    backend = byte_level()
    backend.add_special_tokens([AddedToken("<end>", rstrip=True)])
    return backend


@pytest.mark.parametrize("backend", [_words, _stripped, _dropping, _greedy_for_spaces])
def test_nothing_is_said_where_a_token_may_stand_for_any_length(
    backend: Callable[[], tokenizers.Tokenizer], tmp_path: Path
) -> None:
    assert longest_token(backend()) is None
    assert Tokenizer.load(write(tmp_path, backend())).fewest_tokens("x" * 10_000) == 0


def test_a_long_text_is_encoded_as_the_tokenizer_does(tokenizer: Tokenizer) -> None:
    text = "The quick brown fox, naïve 😀 <s> stop.\n" * 500
    assert tokenizer.encode(text) == tokenizer._backend.encode(text).ids
    plain = tokenizer._backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_chat(text) == plain
    assert 0 < tokenizer.fewest_tokens(text) <= len(plain)
