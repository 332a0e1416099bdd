"""Text to tokens and back: tokenizer, incremental detokenizer, stop strings.

On `tokenizers`, no torch: workers use it to see stop strings, the router to make text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from tokenizers.processors import TemplateProcessing

from workers.chat_template import load_template
from workers.core.errors import CheckpointError, InvalidRequest
from workers.token_bound import longest_token
from workers.token_cache import TokenCache

_UNFINISHED = "\ufffd"  # what decoders write for bytes that are no character, or not yet
_CONTEXT = 6  # tokens of context before the output that can change how it is written
_MAX_PENDING = 8  # tokens held back for one unfinished character; UTF-8 needs at most 4


class Tokenizer:
    """The tokenizer of one checkpoint directory."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_token_ids: tuple[int, ...],
        special_tokens: Mapping[str, str],
        template: jinja2.Template | None,
    ) -> None:
        """`special_tokens` are the names a template may use (bos_token, eos_token, ...)."""
        self.eos_token_ids = eos_token_ids
        self.cache = TokenCache(backend)
        self._backend = backend
        self._special_tokens = dict(special_tokens)
        self._template = template
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._longest_token = longest_token(backend)
        self._anchor = backend.encode("a", add_special_tokens=False).ids[-1:]

    @classmethod
    def load(cls, directory: str) -> Tokenizer:
        """Raises CheckpointError naming the file that is missing or broken."""
        folder = Path(directory)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: only Hugging Face fast tokenizers are read")
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the binding raises bare Exception
            raise CheckpointError(f"{path} is not a tokenizer: {error}") from error
        backend.no_truncation()
        backend.no_padding()
        config = _read_json(folder / "tokenizer_config.json")
        special_tokens = _special_tokens(config)
        _set_post_processor(backend, config, special_tokens)
        return cls(
            backend,
            eos_token_ids=_eos_token_ids(folder, backend, special_tokens),
            special_tokens=special_tokens,
            template=load_template(folder, config),
        )

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def fewest_tokens(self, text: str) -> int:
        """`text` has at least so many tokens. Takes no time; 0 where nothing can be said."""
        return 0 if self._longest_token is None else -(-len(text) // self._longest_token)

    def encode(self, text: str) -> list[int]:
        """With BOS and the like, as the model wants its prompts to begin.

        Safe in a thread beside an event loop: other threads run while a long text is encoded.
        """
        return self._encode(text, add_special_tokens=True)

    def encode_chat(self, text: str) -> list[int]:
        """The tokens of what chat_text() wrote."""
        return self._encode(text, add_special_tokens=False)

    def chat_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation as the model wants it, up to where the assistant speaks.

        Raises InvalidRequest when there is no template, or when it refuses these messages.
        """
        if self._template is None:
            raise InvalidRequest(
                "this model has no chat template; use text completions", param="messages"
            )
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            reason = f"the model's chat template refuses these messages: {error}"
            raise InvalidRequest(reason, param="messages") from error

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """encode_chat() of chat_text()."""
        return self.encode_chat(self.chat_text(messages))

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens and ids outside the vocabulary are left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self.cache.encode(text, add_special_tokens=add_special_tokens)

    def token_text(self, token_id: int) -> str:
        """One token as it reads within a text; special tokens by their name."""
        if token_id in self.special_ids:
            return self._backend.id_to_token(token_id) or ""
        before = self.decode(self._anchor)  # some decoders drop the space of a first token
        return self.decode([*self._anchor, token_id])[len(before) :]


class TextStream:
    """Makes text of tokens that come one by one. Deterministic, bounded work per token.

    Text is given out once it is certain: a character whose bytes are still to come is held back,
    and so is what may become a stop string. The stop string that is complete first ends the text
    right before itself (of those that end at the same character, the longest), however the text
    is cut into tokens. In the first `min_tokens` tokens none is looked for.

    `context_ids` are the tokens before the output: some tokenizers write a first token differently.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        context_ids: Sequence[int],
        stop: tuple[str, ...] = (),
        *,
        min_tokens: int = 0,
    ) -> None:
        self.stopped: str | None = None
        self._tokenizer = tokenizer
        self._shown = [t for t in context_ids[-_CONTEXT:] if t not in tokenizer.special_ids]
        self._shown_text: str | None = None  # until somebody asks: at the end nobody does
        self._pending: list[int] = []  # tokens after _shown whose text is not given out
        self._matchers = [_StopMatcher(text) for text in stop]
        self._held = ""  # text that may begin a stop string
        self._unwatched = min_tokens

    def push(self, token_id: int) -> str:
        """The text that this token made certain; empty once stopped."""
        if self.stopped is not None:
            return ""
        watched = self._unwatched <= 0
        self._unwatched -= 1
        text = self._detokenize(token_id)
        return self._watch(text) if watched else text

    def extend(self, token_ids: Sequence[int]) -> str:
        """What push() of each gives, decoded at once where no stop string is looked for."""
        if len(token_ids) > 1 and not self._matchers:
            plain = [token for token in token_ids if token not in self._tokenizer.special_ids]
            text = self._window_text(self._pending + plain)
            if text and not text.endswith(_UNFINISHED):
                self._pending += plain
                return self._show(len(self._pending), text)
        return "".join(map(self.push, token_ids))

    def finish(self) -> str:
        """The rest, if no stop string was found. Nothing may be pushed afterwards."""
        if self.stopped is not None:
            return ""
        text = self._window_text(self._pending) if self._pending else ""
        self._pending.clear()
        released = self._watch(text) if self._unwatched <= 0 else text
        if self.stopped is not None:
            return released
        released, self._held = released + self._held, ""
        return released

    def _detokenize(self, token_id: int) -> str:
        """What the pending tokens and this one add to the text; they are pending no more then.

        Decoding the last shown tokens too gives the new ones the neighbours that their text depends
        on; everything before can no longer matter.
        """
        if token_id in self._tokenizer.special_ids:
            return ""
        self._pending.append(token_id)
        text = self._window_text(self._pending)
        if text and not text.endswith(_UNFINISHED):
            return self._show(len(self._pending), text)
        if len(self._pending) < _MAX_PENDING:
            return ""
        cut = self._clean_cut(text)
        return self._show(cut, self._window_text(self._pending[:cut]))

    def _window_text(self, tokens: list[int]) -> str:
        if self._shown_text is None:
            self._shown_text = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + tokens)[len(self._shown_text) :]

    def _clean_cut(self, text: str) -> int:
        """How many of the pending tokens, not all, stand in no unfinished character any more."""
        for cut in range(len(self._pending) - 1, 0, -1):
            head = self._window_text(self._pending[:cut])
            if head + self._tokenizer.decode(self._pending[cut:]) == text:
                return cut
        return len(self._pending) - 1

    def _show(self, count: int, text: str) -> str:
        """Give out `text` of the first `count` pending tokens, which are the window from now on."""
        self._shown = self._pending[max(0, count - _MAX_PENDING) : count]
        self._shown_text = None
        del self._pending[:count]
        return text

    def _watch(self, text: str) -> str:
        """Look for stop strings in new text; returns what is certain of it and of the text held."""
        if not self._matchers:
            return text
        held = self._held + text
        for end, char in enumerate(text, len(self._held) + 1):
            found = [m.text for m in self._matchers if m.advance(char)]
            if found:
                self.stopped = max(found, key=len)
                self._held = ""
                return held[: end - len(self.stopped)]
        keep = len(held) - max(matcher.matched for matcher in self._matchers)
        self._held = held[keep:]
        return held[:keep]


class _StopMatcher:
    """Knuth-Morris-Pratt: after each character, how long a beginning of `text` ends there."""

    def __init__(self, text: str) -> None:
        assert text, "an empty stop string matches everywhere"
        self.text = text
        self.matched = 0
        self._fallback = [0] * len(text)  # [i]: longest proper border of text[: i + 1]
        border = 0
        for i in range(1, len(text)):
            while border and text[i] != text[border]:
                border = self._fallback[border - 1]
            border += text[i] == text[border]
            self._fallback[i] = border

    def advance(self, char: str) -> bool:
        """True when `char` completes the stop string."""
        while self.matched and self.text[self.matched] != char:
            self.matched = self._fallback[self.matched - 1]
        self.matched += self.text[self.matched] == char
        return self.matched == len(self.text)


def _read_json(path: Path) -> dict[str, Any]:
    """Empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Every `..._token`, written as a string or as {"content": ...}."""
    found = {}
    for name, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            found[name] = content
    return found


def _set_post_processor(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> None:
    """add_bos_token and add_eos_token, where said, go before tokenizer.json, as in transformers."""
    if config.get("add_bos_token") is None and config.get("add_eos_token") is None:
        return
    around = {"bos_token": "", "eos_token": ""}
    used = []
    for name in around:
        token = special_tokens.get(name, "")
        token_id = backend.token_to_id(token)
        if config.get(f"add_{name}") and token_id is not None:
            around[name] = token
            used.append((token, token_id))
    single = [around["bos_token"], "$A", around["eos_token"]]
    backend.post_processor = TemplateProcessing(
        single=[part for part in single if part], special_tokens=used
    )


def _eos_token_ids(
    folder: Path, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]
) -> tuple[int, ...]:
    """generation_config.json's, else config.json's, and the tokenizer's own."""
    ids = _read_json(folder / "generation_config.json").get("eos_token_id")
    if ids is None:
        ids = _read_json(folder / "config.json").get("eos_token_id")
    found = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
    if (own := backend.token_to_id(special_tokens.get("eos_token", ""))) is not None:
        found.append(own)
    return tuple(dict.fromkeys(found))
