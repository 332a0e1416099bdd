"""The folder of the shipped model: small, complete, loadable, and right on a few questions."""

import json
from pathlib import Path

import pytest
import torch

import workers.demo
from workers.demo.corpus import pieces
from workers.demo.evaluate import held_out, is_right, outside, transformers_replies
from workers.demo.questions import Question

MODEL = Path(workers.demo.__file__).parent / "model"


def test_folder_is_small_and_complete() -> None:
    files = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    assert sum(files.values()) <= 12_000_000
    assert set(files) >= {
        "config.json", "generation_config.json", "model.safetensors", "README.md",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_config_is_a_llama_that_takes_long_prompts() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 1200


def test_chat_template_is_what_was_trained_on() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    chat = Question("dialogues", ("Hi!", "Hello!", "Spell cat."), answer="", system="Be kind.")
    text = tokenizer.apply_chat_template(
        chat.messages(), add_generation_prompt=True, tokenize=False
    )
    assert text == "".join(piece for piece, _ in pieces(chat)).removesuffix(tokenizer.eos_token)


def test_shipped_model_answers() -> None:
    pytest.importorskip("transformers")
    questions = held_out(1) + outside()[:6]
    replies = transformers_replies(MODEL, torch.bfloat16, questions)
    right = [is_right(*pair) for pair in zip(questions, replies, strict=True)]
    assert sum(right) >= 0.85 * len(right)
