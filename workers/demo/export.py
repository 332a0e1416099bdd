"""Writes a trained model as a Hugging Face folder: config, bf16 weights, tokenizer."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from .corpus import END, PAD
from .llama import Llama
from .tokenizer import save_tokenizer


def export(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write everything that AutoModelForCausalLM and AutoTokenizer need to load the model."""
    context = model.shape.max_position_embeddings
    save_tokenizer(tokenizer, folder, context)
    ends: dict[str, object] = {
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    _write(folder / "config.json", model.shape.config() | {"bos_token_id": None} | ends)
    _write(folder / "generation_config.json", {"do_sample": False} | ends)
    weights = {
        name: value.detach().to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
