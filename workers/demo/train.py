"""Trains the demo model on text the package generates: checkpoints, resumes, exports.

Run as `python -m workers.demo.train --out DIR --seed 0`; again, to go on from the checkpoint.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from .corpus import LAST_SHARES, LATER_SHARES, SHARES, Batch, batch, encode
from .evaluate import held_out, outside
from .export import export
from .llama import Llama, Shape
from .questions import Question
from .tokenizer import train_tokenizer


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, apart from the seed and the sizes of the model."""

    steps: int = 4600
    rows: int = 16
    length: int = 256
    long_rows: int = 4
    long_length: int = 1152
    long_every: int = 6
    long_from: int = 600  # the step from which every `long_every`-th is of long rows
    later_from: int = 1500  # the step from which chats are drawn by LATER_SHARES
    last_from: int = 3250  # the step from which chats are drawn by LAST_SHARES
    rate: float = 2.5e-3
    # The share of `rate` at some steps; straight lines between them, nothing from `steps` on.
    bends: tuple[tuple[int, float], ...] = (
        (0, 1 / 150), (149, 1.0), (1600, 1.0), (2750, 0.361), (3250, 0.18), (3750, 0.09),
        (3800, 0.16), (4000, 0.11),
    )  # fmt: skip
    weight_decay: float = 0.05

    def is_long(self, step: int) -> bool:
        return step >= self.long_from and step % self.long_every == 0

    def shares_at(self, step: int) -> dict[str, float]:
        if step < self.later_from:
            return SHARES
        return LATER_SHARES if step < self.last_from else LAST_SHARES

    def rate_at(self, step: int) -> float:
        bends = (*self.bends, (self.steps, 0.0))
        for (first, high), (last, low) in pairwise(bends):
            if first <= step < last:
                return self.rate * (high + (low - high) * (step - first) / (last - first))
        return 0.0


def loss_of(model: Llama, data: Batch) -> Tensor:
    """Mean cross entropy of the weighted targets."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(data.tokens, data.positions, data.mask())
    losses = F.cross_entropy(logits.flatten(0, 1).float(), data.targets.flatten(), reduction="none")
    weights = data.weights.flatten()
    return (losses * weights).sum() / weights.sum()


class Trainer:
    """A model, its optimizers and the step they stand at."""

    def __init__(
        self, tokenizer: Tokenizer, shape: Shape, recipe: Recipe, seed: int, compiled: bool
    ) -> None:
        torch.manual_seed(seed)
        self.tokenizer, self.recipe, self.seed, self.step = tokenizer, recipe, seed, 0
        self.model = Llama(shape)
        matrices = [p for n, p in self.model.named_parameters() if "_proj" in n]
        others = [p for n, p in self.model.named_parameters() if "_proj" not in n]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.loss: Callable[[Llama, Batch], Tensor] = (
            torch.compile(loss_of, dynamic=False) if compiled else loss_of
        )

    def advance(self) -> tuple[float, int]:
        """One step; returns its loss and the number of its tokens."""
        recipe = self.recipe
        if recipe.is_long(self.step):
            rows, length = recipe.long_rows, recipe.long_length
        else:
            rows, length = recipe.rows, recipe.length
        shares = recipe.shares_at(self.step)
        data = batch(self.tokenizer, self.seed, self.step, rows, length, shares)
        loss = self.loss(self.model, data)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at(self.step)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.item(), rows * length

    def save(self, path: Path) -> None:
        """Write a checkpoint; the old one stays whole until the new one is."""
        state = {
            "step": self.step,
            "seed": self.seed,
            "tokenizer": self.tokenizer.to_str(),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        fresh = path.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        if state["seed"] != self.seed:
            raise ValueError(f"{path} was trained with seed {state['seed']}, not {self.seed}")
        self.step, self.tokenizer = state["step"], Tokenizer.from_str(state["tokenizer"])
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


@torch.no_grad()
def exact(model: Llama, tokenizer: Tokenizer, questions: list[Question]) -> dict[str, float]:
    """Share of answers that greedy decoding would give, kind by kind.

    Decoding gives the answer exactly when each of its tokens is the likeliest after the
    ones before it, so one pass over the whole chats is enough.
    """
    right: dict[str, list[bool]] = {}
    coded = sorted(
        ((*encode(tokenizer, question), question) for question in questions),
        key=lambda entry: len(entry[0]),
    )
    for first in range(0, len(coded), 16):
        part = coded[first : first + 16]
        length = max(len(ids) for ids, _, _ in part)
        tokens = torch.tensor([ids + [0] * (length - len(ids)) for ids, _, _ in part])
        positions = torch.arange(length).expand_as(tokens)
        mask = torch.ones(length, length, dtype=torch.bool).tril().expand(len(part), 1, -1, -1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            best = model(tokens, positions, mask).argmax(-1)  # [B, T]
        for row, (ids, _, question) in enumerate(part):
            answer = len(tokenizer.encode(question.answer).ids) + 1
            said, end = best[row, len(ids) - answer - 1 : len(ids) - 1], ids[-answer:]
            right.setdefault(question.kind, []).append(said.tolist() == end)
    return {kind: sum(flags) / len(flags) for kind, flags in right.items()}


def train(trainer: Trainer, out: Path, stop: int, every: int = 250) -> None:
    """Run to step `stop`, with a line of progress, a checkpoint and an export now and then."""
    checks = held_out(40, seed=99) + outside()
    began, tokens, average = time.perf_counter(), 0, math.nan
    while trainer.step < stop:
        loss, count = trainer.advance()
        tokens += count
        average = loss if math.isnan(average) else 0.98 * average + 0.02 * loss
        if trainer.step % 25 == 0:
            seconds = time.perf_counter() - began
            left = seconds / tokens * count * (stop - trainer.step)
            print(
                f"step {trainer.step}/{stop} loss {average:.4f} "
                f"{tokens / seconds:,.0f} tokens/s, {seconds / 60:.1f} min, "
                f"{left / 60:.0f} min left",
                flush=True,
            )
        if trainer.step % every == 0 or trainer.step == stop:
            trainer.save(out / "checkpoint.pt")
            export(trainer.model, trainer.tokenizer, out / "model")
            scores = exact(trainer.model, trainer.tokenizer, checks)
            print("  " + ", ".join(f"{k} {v:.0%}" for k, v in sorted(scores.items())), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint and model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", type=int, help="leave off at this step, to resume later")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eager", action="store_true", help="do not compile the model")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer, recipe = train_tokenizer(options.seed), Recipe()
    trainer = Trainer(tokenizer, Shape(), recipe, options.seed, compiled=not options.eager)
    checkpoint = options.out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
        print(f"resumed at step {trainer.step}", flush=True)
    train(trainer, options.out, min(options.stop or recipe.steps, recipe.steps))


if __name__ == "__main__":
    main()
