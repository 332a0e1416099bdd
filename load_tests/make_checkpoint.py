"""Write a checkpoint with random weights in the shape of a known model, for measuring speed.

    python load_tests/make_checkpoint.py --shape qwen3-0.6b --out /tmp/qwen3-0.6b

Hugging Face layout (config, safetensors, tokenizer, chat template); the same seed gives the same
bytes. Tensors are drawn shard by shard, so the memory needed is that of one shard.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from workers.kernels.torch_kernels import TorchKernels
from workers.layers.build import Build
from workers.models.config import load_config
from workers.models.decoder import Decoder
from workers.models.parts import DTYPES
from workers.models.shapes import SHAPES

SHARD_BYTES = 1 << 30
EOS, START, PAD = "<|im_end|>", "<|im_start|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


TEXT = """
A request comes in at the gate. It is read once, cut into tokens once, and every full block of them
gets a name that depends on all the blocks before it. Who else has seen this beginning? A worker
that has kept it need not compute it again, so the router asks its index and sends the request
there, unless the queue in front of that worker is longer than the work that it would save.
The prefill worker computes what is new, hands over the first token, and waits for somebody to fetch
the rest. The decode worker takes the pages, checks them, and goes on one token at a time, together
with all the others it is serving. Each step reads every weight of the model once, whether it makes
one token or thirty, which is why they travel together.
The morning was cold and the river was high. Two boats lay at the landing, and neither of them was
ours. "How long will it take?" she asked. "An hour, if the wind holds; a day, if it does not."
In 1847 there were 12 houses here, in 1901 there were 340, and by 1990 nobody counted any more.
What is the capital of France? The capital of France is Paris. What is 17 + 25? 17 + 25 = 42.
def step(self): batch = self.scheduler.schedule(); out = self.runner.execute(batch); return out
Please write a short letter to the people who will live in this town a hundred years from now.
"""


def main() -> None:
    arguments = _arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    _write_config(out, arguments.shape, arguments.dtype)
    _write_tokenizer(out, SHAPES[arguments.shape]["vocab_size"])
    _write_weights(out, arguments.seed, getattr(torch, arguments.dtype))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, made if missing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    return parser.parse_args()


def _write_config(out: Path, shape: str, dtype: str) -> None:
    vocab_size = SHAPES[shape]["vocab_size"]
    # The special tokens are the last of the vocabulary, in the order of _write_tokenizer.
    ids = {"eos_token_id": vocab_size - 3, "pad_token_id": vocab_size - 1}
    config = SHAPES[shape] | ids | {"torch_dtype": dtype, "attention_bias": False}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")


def _write_tokenizer(out: Path, vocab_size: int) -> None:
    """Byte-level BPE of TEXT, filled up with made-up words so that every id has a text."""
    specials = [EOS, START, PAD]
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=min(1024, vocab_size - len(specials)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learned.train_from_iterator(TEXT.splitlines(), trainer)
    state = json.loads(learned.to_str())["model"]
    vocab: dict[str, int] = state["vocab"]
    for token in range(len(vocab), vocab_size - len(specials)):
        vocab[f"Ġw{token:x}"] = token  # Ġ is how byte-level tokenizers write a space
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(merge) for merge in state["merges"]]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _write_weights(out: Path, seed: int, dtype: torch.dtype) -> None:
    config = load_config(out)
    decoder = Decoder(config, Build(dtype, torch.device("meta"), TorchKernels()))
    shapes = {target.name: target.shape for target in decoder.targets()}
    shards = list(_shards(shapes, dtype.itemsize))
    placed: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        if len(shards) == 1:
            file = "model.safetensors"
        tensors = {name: _draw(name, shapes[name], seed, dtype) for name in names}
        save_file(tensors, out / file, metadata={"format": "pt"})
        (out / file).chmod(0o644)  # save_file keeps the mode of its temporary file
        placed |= dict.fromkeys(names, file)
        print(f"{number}/{len(shards)} {out / file}", file=sys.stderr)
    if len(shards) > 1:
        total = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(shapes: dict[str, tuple[int, ...]], item_bytes: int) -> Iterator[list[str]]:
    """Names in order, cut before a shard would grow beyond SHARD_BYTES."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        tensor_bytes = math.prod(shape) * item_bytes
        if names and size + tensor_bytes > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor_bytes
    yield names


def _draw(name: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Norms are ones, the rest normal; each tensor has its own stream, whatever shard it is in."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=dtype)
    digest = blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.empty(shape, dtype=dtype).normal_(std=0.02, generator=generator)


if __name__ == "__main__":
    main()
