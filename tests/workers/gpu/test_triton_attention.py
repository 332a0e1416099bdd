"""Attention over pages in place, against attention written out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.workers.attention_cases import LAYER, STEPS, Case, Step, bury, new_case, new_context
from workers.attention import triton_backend
from workers.attention.backend import Scores
from workers.attention.triton_backend import TritonBackend, choose_tiles


@pytest.mark.parametrize(("heads", "dtype"), [(6, torch.float32), (2, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_attention_over_poisoned_pages(
    step: Step, heads: int, dtype: torch.dtype, device: torch.device
) -> None:
    new_case(step, device, heads=heads, dtype=dtype, head_dim=8).check(TritonBackend)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page"),
    [(3, 3, 24, 3), (4, 1, 64, 16), (5, 1, 80, 16), (8, 2, 128, 16), (18, 1, 16, 1)],
)
def test_shapes_of_models(
    heads: int, kv_heads: int, head_dim: int, page: int, device: torch.device
) -> None:
    step = [(1, 1), (1, 70), (3, 67)]
    case = new_case(step, device, heads=heads, kv_heads=kv_heads, head_dim=head_dim, page=page)
    case.check(TritonBackend)


def test_float16(device: torch.device) -> None:
    new_case([(1, 20), (5, 9)], device, dtype=torch.float16).check(TritonBackend)


def test_chunks_of_several_tiles_of_queries_and_keys(device: torch.device) -> None:
    tiles = choose_tiles(8, 8, torch.float32)
    queries = tiles.rows + 3
    step = [(queries, queries), (queries, queries + tiles.keys + 5)]
    new_case(step, device, heads=2, kv_heads=1, head_dim=8).check(TritonBackend)


SINKS = torch.tensor([0.3, 4.0])
SCORES = {
    "scale": Scores(0.7),
    "window 1": Scores(0.2, window=1),
    "window 4": Scores(0.2, window=4),
    "window 40": Scores(0.2, window=40),  # longer than a tile of keys
    "window 9999": Scores(0.2, window=9999),
    "sinks": Scores(0.2, sinks=SINKS),
    "sinks, window 6": Scores(0.2, window=6, sinks=SINKS),
    "latent": Scores(0.2, value_dim=16),
    "latent, all there is": Scores(0.2, window=6, sinks=SINKS, value_dim=24),
}


def scores_of(kind: str, like: Tensor) -> Scores:
    scores = SCORES[kind]
    return scores if scores.sinks is None else replace(scores, sinks=scores.sinks.to(like))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in SCORES),
        ("sinks, window 6", torch.bfloat16),
        *(
            pytest.param(kind, torch.bfloat16, marks=pytest.mark.slow)
            for kind in SCORES
            if kind != "sinks, window 6"
        ),
    ],
    ids=str,
)
def test_scores_of_every_kind(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    """Windows end in every tile of queries and of keys."""
    scores = scores_of(kind, torch.empty(0, device=device, dtype=dtype))
    step = [(1, 3), (1, 70), (33, 33), (35, 75), (2, 50)]
    case = new_case(step, device, heads=2, kv_heads=1, dtype=dtype, scores=scores)
    case.check(TritonBackend)


def test_keys_before_every_window_are_not_read(device: torch.device) -> None:
    step = [(1, 40), (1, 9), (3, 30), (40, 99)]
    case = new_case(step, device, heads=2, kv_heads=1, scores=Scores(0.2, window=10))
    bury(case, [max(0, n - q + 1 - 10) for q, n in step])
    case.check(TritonBackend)


def test_many_heads_share_a_latent(device: torch.device) -> None:
    scores = Scores(0.2, value_dim=24)
    step = [(1, 5), (1, 40), (3, 19)]
    case = new_case(step, device, heads=20, kv_heads=1, head_dim=40, scores=scores)
    case.check(TritonBackend)


@pytest.fixture
def short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "SPLITS", 4)
    monkeypatch.setattr(triton_backend, "LEAST_KEYS", 8)


@pytest.mark.usefixtures("short_splits")
@pytest.mark.parametrize("programs", [1, 4, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "length", [7, 33, 100, *(pytest.param(n, marks=pytest.mark.slow) for n in (8, 9, 31))]
)
def test_splits_are_merged_whoever_computes_them(
    length: int, programs: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to four splits of eight keys or more, by one, two or four programs."""
    monkeypatch.setattr(triton_backend, "PROGRAMS", programs)
    new_case([(1, length)], device, head_dim=8).check(TritonBackend)
    scores = replace(scores_of("sinks", torch.empty(0, device=device)), window=28)
    new_case([(1, length)], device, heads=2, kv_heads=1, scores=scores).check(TritonBackend)


@pytest.mark.usefixtures("short_splits")
def test_a_sequence_gets_the_same_bits_in_every_batch(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = new_case([(1, 30), (1, 5), (1, 90), (4, 12)], device)
    together = case.attend(TritonBackend)
    monkeypatch.setattr(triton_backend, "PROGRAMS", 1)
    context = case.context
    for chunk in range(3):
        alone = new_context(
            [(1, context.lengths[chunk])],
            context.slots[chunk : chunk + 1],
            context.block_tables[chunk : chunk + 1],
        )
        rows = case.qkv[chunk : chunk + 1]
        single = Case(case.cache, alone, rows, case.heads, case.scores, [], [])
        assert torch.equal(single.attend(TritonBackend)[0], together[chunk])


@pytest.mark.parametrize("kind", ["scale", "sinks, window 6"])
def test_a_row_of_padding_writes_nothing_and_reads_nothing(kind: str, device: torch.device) -> None:
    scores = scores_of(kind, torch.empty(0, device=device))
    case = new_case([(1, 6), (1, 9)], device, heads=2, left=1.0, scores=scores)
    before = case.cache.pages.clone()
    case.context.slots[1] = -1
    case.context.lengths_tensor[1] = 0
    case.context.block_tables[1] = 10**6
    got = case.attend(TritonBackend)
    torch.testing.assert_close(got[:1], case.expected(0), rtol=1e-5, atol=1e-5)
    assert not got[1].any()
    changed = (case.cache.pages != before).flatten(4).any(4)  # [block, layer, side, offset]
    slot = int(case.context.slots[0])
    assert changed.nonzero().tolist() == [[slot // 4, LAYER, side, slot % 4] for side in (0, 1)]


def test_keys_and_values_stand_where_the_slots_say(device: torch.device) -> None:
    case = new_case([(1, 6), (5, 11)], device, page=3)
    case.attend(TritonBackend)
    key, value = case.qkv[:, 6:8], case.qkv[:, 8:]
    pages = case.cache.pages[:, LAYER]
    for row, slot in enumerate(case.context.slots.tolist()):
        assert torch.equal(pages[slot // 3, 0, slot % 3], key[row])
        assert torch.equal(pages[slot // 3, 1, slot % 3], value[row])
    assert pages[:, :].isnan().any() and case.cache.pages[:, :LAYER].isnan().all()
