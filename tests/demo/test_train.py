"""A tiny training run: it learns, it resumes to the same weights, and its export loads."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from workers.demo.corpus import Batch, batch
from workers.demo.export import export
from workers.demo.llama import Shape
from workers.demo.tokenizer import train_tokenizer
from workers.demo.train import Recipe, Trainer

TINY = Shape(hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=8)
RECIPE = Recipe(
    steps=8, rows=2, length=64, long_rows=1, long_length=520, long_every=3, long_from=2,
    later_from=4, last_from=5, bends=((0, 0.5), (2, 1.0)),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(seed=3, chats=3000)


def trainer(tokenizer: Tokenizer, seed: int = 5) -> Trainer:
    return Trainer(tokenizer, TINY, RECIPE, seed, compiled=False)


def test_resumed_run_ends_with_identical_weights(tokenizer: Tokenizer, tmp_path: Path) -> None:
    whole = trainer(tokenizer)
    for _ in range(6):
        whole.advance()

    first = trainer(tokenizer)
    for _ in range(3):
        first.advance()
    first.save(tmp_path / "checkpoint.pt")
    second = trainer(tokenizer)
    second.load(tmp_path / "checkpoint.pt")
    assert second.step == 3
    for _ in range(3):
        second.advance()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_checkpoint_of_another_seed_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer(tokenizer).save(tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="seed 5, not 6"):
        trainer(tokenizer, seed=6).load(tmp_path / "checkpoint.pt")


def test_loss_falls_on_a_batch_seen_again(tokenizer: Tokenizer) -> None:
    run = trainer(tokenizer)
    seen = batch(run.tokenizer, 0, 0, 2, 64)
    before = run.loss(run.model, seen).item()
    for _ in range(8):
        run.advance()
    assert run.loss(run.model, seen).item() < before - 0.1


def test_rate_rises_stays_and_falls() -> None:
    recipe = Recipe(steps=100, bends=((0, 0.1), (9, 1.0), (50, 1.0), (75, 0.2)), rate=1.0)
    rates = [recipe.rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[50] == 1.0
    assert rates[75] == pytest.approx(0.2) and rates[100] == 0.0
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_export_matches_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    run = trainer(tokenizer)
    run.advance()
    export(run.model, run.tokenizer, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    weights = {name: value.bfloat16().float() for name, value in run.model.state_dict().items()}
    run.model.load_state_dict(weights)
    tokens = torch.randint(0, 1024, (1, 40))
    data = Batch(tokens, torch.arange(40)[None], tokens * 0, tokens, tokens.float())
    with torch.no_grad():
        ours = run.model(data.tokens, data.positions, data.mask())
        torch.testing.assert_close(ours, theirs(tokens).logits, atol=1e-4, rtol=1e-4)
