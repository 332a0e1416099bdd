"""Pages and the torch backend, against attention written out by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.workers.attention_cases import LAYER, STEPS, Step, bury, by_hand, new_case, new_context
from workers.attention.backend import AttentionBackend, Scores
from workers.attention.compiled_backend import CompiledBackend
from workers.attention.kv_cache import KVCache, KVShape
from workers.attention.torch_backend import TorchBackend
from workers.attention.torch_parts import Scratch, attention_groups, foreign_rows
from workers.kernels.library import level, load_library

CPU = torch.device("cpu")
SHAPE = KVShape(layers=3, kv_heads=2, head_dim=8, block_size=4, dtype=torch.float32)


def new_cache(num_blocks: int = 12) -> KVCache:
    cache = KVCache(SHAPE, num_blocks, CPU)
    cache.pages.normal_(generator=torch.Generator().manual_seed(0))
    return cache


def test_a_block_is_one_run_of_bytes() -> None:
    cache = new_cache()
    assert cache.block_bytes == 3 * 2 * 4 * 2 * 8 * 4 == cache.pages[0].numel() * 4
    staging = cache.new_staging(3 * cache.block_bytes)
    cache.gather([7, 2], staging)
    assert cache.to_bytes(staging, cache.block_bytes) == cache.pages[7].numpy().tobytes()


def test_pages_move_to_another_cache_unchanged() -> None:
    source, target = new_cache(), KVCache(SHAPE, 5, CPU)
    staging = source.new_staging(4 * source.block_bytes)  # larger than what is moved
    source.gather([11, 0, 5], staging)
    arrived = target.from_bytes(source.to_bytes(staging, 3 * source.block_bytes))
    target.scatter(arrived, [1, 4, 2])
    assert torch.equal(target.pages[[1, 4, 2]], source.pages[[11, 0, 5]])
    assert not target.pages[[0, 3]].any()


def test_pages_of_one_side_hold_half_as_much() -> None:
    shape = replace(SHAPE, sides=1)
    cache = KVCache(shape, 5, CPU)
    assert 2 * shape.block_bytes == SHAPE.block_bytes == 2 * cache.pages[0].numel() * 4
    key, slots = torch.randn(2, 2, 8), torch.tensor([3 * 4 + 1, 0])
    cache.write(2, cache.token_rows(slots), key)
    assert torch.equal(cache.pages[3, 2, 0, 1], key[0])
    read = torch.empty(2, 4, 2, 8)
    cache.read(2, cache.page_rows(torch.tensor([3, 0])), read)
    assert torch.equal(read[0, 1], key[0]) and torch.equal(read[1, 0], key[1])
    assert cache.pages.count_nonzero() == key.numel()  # nothing else has changed


def test_staging_too_small_is_our_bug() -> None:
    cache = new_cache()
    with pytest.raises(AssertionError, match="staging"):
        cache.gather([1, 2], cache.new_staging(cache.block_bytes))


def test_write_puts_each_token_where_its_slot_says() -> None:
    cache = new_cache()
    before = cache.pages.clone()
    slots = torch.tensor([9 * 4 + 3, 2 * 4, 2 * 4 + 1])
    key, value = torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    cache.write(1, cache.token_rows(slots), key, value)
    for row, (block, offset) in enumerate([(9, 3), (2, 0), (2, 1)]):
        assert torch.equal(cache.pages[block, 1, 0, offset], key[row])
        assert torch.equal(cache.pages[block, 1, 1, offset], value[row])
        before[block, 1, :, offset] = cache.pages[block, 1, :, offset]
    assert torch.equal(cache.pages, before)  # nothing else has changed


BACKENDS: dict[str, Callable[[KVCache], AttentionBackend]] = {
    "torch": TorchBackend,
    "compiled": CompiledBackend,
    "compiled decodes": lambda cache: CompiledBackend(cache, TorchBackend(cache)),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Callable[[KVCache], AttentionBackend]:
    if request.param != "torch" and not load_library():
        assert shutil.which("g++") is None or level() is None, "make install has not built it"
        pytest.skip("no compiler, or not an x86 CPU with AVX2")
    return BACKENDS[request.param]


@pytest.mark.parametrize("left", [0.0, float("nan")], ids=["clean", "poisoned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("step", STEPS)
def test_attention_over_pages(
    step: Step,
    heads: int,
    dtype: torch.dtype,
    left: float,
    backend: Callable[[KVCache], AttentionBackend],
) -> None:
    new_case(step, CPU, heads=heads, dtype=dtype, left=left).check(backend)


SINKS = torch.tensor([-20.0, 0.3, 2.0, -1.0, 30.0, 4.0])
SCORES = {
    "scale": Scores(0.7),
    "window 1": Scores(0.2, window=1),
    "window 4": Scores(0.2, window=4),  # a block
    "window 7": Scores(0.2, window=7),
    "window 100": Scores(0.2, window=100),  # longer than a tile of keys
    "window 256": Scores(0.2, window=256),  # a split of a decode
    "window 9999": Scores(0.2, window=9999),
    "sinks": Scores(0.2, sinks=SINKS),
    "sinks, window 6": Scores(0.2, window=6, sinks=SINKS),
    "latent": Scores(0.2, value_dim=16),
    "latent, all there is": Scores(0.2, window=6, sinks=SINKS, value_dim=24),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("step", STEPS)
def test_scores_of_every_kind(
    step: Step, kind: str, dtype: torch.dtype, backend: Callable[[KVCache], AttentionBackend]
) -> None:
    new_case(step, CPU, dtype=dtype, scores=SCORES[kind]).check(backend)


@pytest.mark.parametrize("heads", [97, 128])
def test_more_heads_on_one_latent_than_a_tile_has_rows(
    heads: int, backend: Callable[[KVCache], AttentionBackend]
) -> None:
    scores = Scores(0.2, sinks=torch.randn(heads), value_dim=40)
    step = [(1, 5), (1, 40), (3, 3), (4, 19)]
    new_case(step, CPU, heads=heads, kv_heads=1, head_dim=64, scores=scores).check(backend)


def test_sinks_may_be_of_the_model_s_own_type(
    backend: Callable[[KVCache], AttentionBackend],
) -> None:
    scores = Scores(0.2, sinks=SINKS.bfloat16())
    new_case(STEPS[-2], CPU, dtype=torch.bfloat16, scores=scores).check(backend)


def test_pages_before_every_window_are_not_read(
    backend: Callable[[KVCache], AttentionBackend],
) -> None:
    step = [(1, 40), (1, 400), (1, 9), (3, 30), (200, 500)]
    case = new_case(step, CPU, scores=Scores(0.2, window=10))
    bury(case, [max(0, n - q + 1 - 10) // 4 * 4 for q, n in step])
    case.check(backend)


def test_layers_with_and_without_a_window_share_a_plan(
    backend: Callable[[KVCache], AttentionBackend],
) -> None:
    case = new_case(STEPS[-2], CPU)
    plan = backend(case.cache).plan(case.context)
    query, key, value = case.qkv.split((6, 2, 2), dim=1)
    for _ in range(2):
        for scores in (Scores(0.2), Scores(0.2, window=3)):
            got = plan.attend(LAYER, query, key, value, scores)
            for i, keys in enumerate(case.keys):
                rows = case.rows(i)
                expected = by_hand(query[rows], keys, case.values[i], scores)
                torch.testing.assert_close(got[rows], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["window 100", "sinks, window 6", "latent", "scale"])
@pytest.mark.skipif(not load_library(), reason="no compiled kernels")
def test_a_sequence_gets_the_same_bits_in_every_batch(kind: str) -> None:
    step = [(1, 3), (1, 300), (1, 700), (40, 100), (150, 350)]
    case = new_case(step, CPU, scores=SCORES[kind])
    together = case.attend(CompiledBackend)
    query, key, *value = case.qkv.split((6, *[2] * case.cache.shape.sides), dim=1)
    for i, chunk in enumerate(step):
        rows = case.rows(i)
        alone = new_context([chunk], case.context.slots[rows], case.context.block_tables[i : i + 1])
        plan = CompiledBackend(case.cache).plan(alone)
        own = value[0][rows] if value else None
        got = plan.attend(LAYER, query[rows], key[rows], own, case.scores)
        assert torch.equal(got, together[rows])


def test_written_out_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.attention.torch_backend.LOGITS", 100)
    step = [(1, 30), (1, 40), (7, 7), (9, 19)]
    new_case(step, CPU, scores=SCORES["latent, all there is"]).check(TorchBackend)


def test_rows_that_a_sequence_never_wrote() -> None:
    # two tokens: their page and a copy of it; five: a rest of three; eight: none
    assert foreign_rows([2, 5, 8], pages=2, block_size=4).tolist() == [2, 3, 6, 7, 13, 14, 15]
    # padding repeats a full page
    assert foreign_rows([4, 12], pages=3, block_size=4).tolist() == []


def test_scratch_is_kept_and_grows_by_half_at_least() -> None:
    scratch = Scratch(CPU)
    first = scratch.take("keys", (10, 10), torch.float32)
    assert scratch.take("keys", (5, 3), torch.float32).data_ptr() == first.data_ptr()
    grown = scratch.take("keys", (101,), torch.float32)
    assert scratch.take("keys", (150,), torch.float32).data_ptr() == grown.data_ptr()


@pytest.mark.parametrize(
    ("step", "sizes"),
    [
        ([(1, 10)] * 8, [8]),
        ([(1, 10), (1, 15), (1, 20)], [3]),
        ([(1, 10), (1, 10), (1, 1000)], [2, 1]),  # 3,000 keys read for 1,020
        ([(1, 10), (1, 12), (5, 5), (5, 11), (1, 10)], [2, 1, 1, 1]),
    ],
)
def test_decodes_of_similar_length_attend_together(
    step: list[tuple[int, int]], sizes: list[int]
) -> None:
    groups = attention_groups([queries for queries, _ in step], [length for _, length in step])
    assert [len(group) for group in groups] == sizes
    assert [i for group in groups for i in group] == list(range(len(step)))
