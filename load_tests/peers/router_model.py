"""A checkpoint for measuring routers: a tokenizer of real size and a config; and prompts.

The text is English prose that every Python brings along, its language reference; the tokenizer is a
byte-level BPE of 32,768 tokens, trained on the standard library's sources, which are as much prose
as code. It splits as Qwen's and Llama 3's do, so a prompt costs what it costs in life.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from workers.models.shapes import SHAPES

VOCAB = 32_768
CONTEXT = 131_072
EOS, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(folder: Path) -> None:
    """A minute of one core. Leaves a folder that has a model alone."""
    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[PAD, START, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_library(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": EOS, "pad_token": PAD, "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    shape = SHAPES["qwen3-0.6b"] | {"vocab_size": VOCAB, "max_position_embeddings": CONTEXT}
    eos = tokenizer.token_to_id(EOS)
    (folder / "config.json").write_text(json.dumps(shape | {"eos_token_id": eos}, indent=2))


def _library() -> Iterator[str]:
    yield from topics.values()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="replace")


class Prose:
    """English without end: which word follows a word is drawn from where it stands in the text."""

    def __init__(self, seed: int | str) -> None:
        words = re.findall(r"[A-Za-z]+[.,;:]?|\d+", " ".join(topics.values()))
        self._next: dict[str, list[str]] = {}
        for word, after in itertools.pairwise(words):
            self._next.setdefault(word, []).append(after)
        self._words = words
        self._random = random.Random(seed)

    def text(self, size: int) -> str:
        """`size` characters, of which each is a byte."""
        parts: list[str] = []
        left = size
        word = self._random.choice(self._words)
        while left > 0:
            parts.append(word)
            left -= len(word) + 1
            word = self._random.choice(self._next.get(word) or self._words)
        return " ".join(parts)[:size].ljust(size, ".")


def alone(prose: Prose, size: int, count: int) -> Iterator[list[dict[str, str]]]:
    """Prompts that share nothing."""
    for _ in range(count):
        yield [{"role": "user", "content": prose.text(size)}]


def shared(
    prose: Prose, size: int, count: int, systems: int = 16
) -> Iterator[list[dict[str, str]]]:
    """The first half of each is one of a few system prompts."""
    known = [{"role": "system", "content": prose.text(size // 2)} for _ in range(systems)]
    for number in range(count):
        yield [known[number % systems], {"role": "user", "content": prose.text(size - size // 2)}]
