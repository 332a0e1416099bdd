"""What a step asks of a rank, against what the papers and config.json say of known models."""

from __future__ import annotations

import pytest

from workers.models.config import read_shape
from workers.models.costs import step_costs
from workers.models.sizing import Split

ONE = Split()


@pytest.mark.parametrize(
    ("name", "active", "read"),
    [
        ("llama-8b", 7.5e9, 15.0e9),
        ("llama-70b", 69.5e9, 139e9),
        ("qwen3-30b-a3b", 3.0e9, 60e9),
        ("mixtral-8x7b", 12.7e9, 93e9),
        ("deepseek-v3", 36.5e9, 1.34e12),
    ],
)
def test_a_token_goes_through_the_active_weights_and_a_large_batch_reads_all(
    name: str, active: float, read: float
) -> None:
    costs = step_costs(read_shape(name), ONE)
    assert (costs.row_flops + costs.sampled_flops) / 2 == pytest.approx(active, rel=0.05)
    assert costs.read_bytes(10_000) == pytest.approx(read, rel=0.05)


def test_a_batch_touches_the_experts_that_its_tokens_choose() -> None:
    costs = step_costs(read_shape("qwen3-30b-a3b"), ONE)
    one, all_of_them = (costs.read_bytes(rows) - costs.weight_bytes for rows in (1, 10_000))
    assert one == pytest.approx(all_of_them * 8 / 128)
    reads = [costs.read_bytes(rows) for rows in (1, 2, 8, 64, 512)]
    assert reads == sorted(reads)
    assert costs.read_bytes(2) - costs.weight_bytes < 2 * one, "two tokens may choose the same"


def test_kv_of_a_latent_is_one_for_all_heads() -> None:
    deepseek, llama = (step_costs(read_shape(name), ONE) for name in ("deepseek-v3", "llama-70b"))
    assert deepseek.kv_bytes == 61 * (512 + 64) * 2
    assert llama.kv_bytes == 80 * 2 * 8 * 128 * 2
    assert deepseek.pair_flops > llama.pair_flops, "its queries meet latents, which are wider"


def test_ranks_share_the_work_and_talk() -> None:
    config = read_shape("llama-70b")
    one, eight = step_costs(config, ONE), step_costs(config, Split(8))
    assert eight.row_flops == pytest.approx(one.row_flops / 8, rel=0.05)
    assert eight.weight_bytes == pytest.approx(one.weight_bytes / 8, rel=0.05)
    assert eight.kv_bytes == one.kv_bytes / 8
    assert (one.sent_bytes, one.collectives) == (0, 0)
    # Two sums in each layer; a ring sends 2 (n - 1) / n of what is summed.
    assert eight.sent_bytes == 80 * 2 * 2 * 7 / 8 * 8192 * 2 and eight.collectives == 160


def test_ranks_that_share_experts_have_sequences_of_their_own() -> None:
    config = read_shape("deepseek-v3")
    one, eight = step_costs(config, ONE), step_costs(config, Split(1, 8))
    assert eight.kv_bytes == one.kv_bytes / 8, "each reads the KV of its own sequences"
    assert eight.weight_bytes == one.weight_bytes, "attention is whole on each"
    assert eight.row_flops == pytest.approx(one.row_flops / 8)


def test_layers_with_a_window_do_not_grow_with_the_context() -> None:
    config = read_shape("gemma3-1b")
    full = sum(layer.attention.window is None for layer in config.layers)
    costs = step_costs(config, ONE)
    assert 0 < full < len(config.layers)
    assert costs.kv_bytes == full * 2 * 256 * 2
