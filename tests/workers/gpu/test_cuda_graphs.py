"""Replayed decode steps: the bits of an eager step for real rows, and no trace of padding."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checkpoints import make_checkpoint
from workers.attention.backend import Scores
from workers.attention.context import ForwardContext
from workers.attention.kv_cache import KVCache, KVShape
from workers.attention.torch_backend import TorchBackend
from workers.attention.triton_backend import TritonBackend
from workers.kernels.torch_kernels import TorchKernels
from workers.kernels.triton_kernels import TritonKernels
from workers.layers.build import Build
from workers.models.checkpoint import open_checkpoint
from workers.models.config import load_config
from workers.models.loader import load_decoder
from workers.runner.cuda_graphs import (
    Capture,
    CudaCapture,
    DecodeGraphs,
    EagerCapture,
    Replay,
    batch_sizes,
)
from workers.runner.inputs import pack, to_device

HEADS, KV_HEADS, WIDTH, PAGE = 4, 2, 16, 4
PAGES = 24


def new_capture(device: torch.device) -> Capture:
    return CudaCapture() if device.type == "cuda" else EagerCapture()


def new_cache(device: torch.device, layers: int = 1) -> KVCache:
    cache = KVCache(KVShape(layers, KV_HEADS, WIDTH, PAGE, torch.float32), PAGES, device)
    generator = torch.Generator(device).manual_seed(3)
    cache.pages.normal_(generator=generator)
    return cache


class Model:
    """One layer of attention whose queries, keys and values are looked up: no row can touch another
    but through pages."""

    def __init__(self, cache: KVCache) -> None:
        self.backend = TritonBackend(cache)
        generator = torch.Generator().manual_seed(5)
        heads = HEADS + 2 * KV_HEADS
        self.table = torch.randn(50, heads, WIDTH, generator=generator).to(cache.device)

    def __call__(self, context: ForwardContext) -> Tensor:
        qkv = self.table[context.token_ids] + context.positions[:, None, None]
        query, key, value = qkv.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        scores = Scores(WIDTH**-0.5)
        return self.backend.plan(context).attend(0, query, key, value, scores).flatten(1)


def positions(context: ForwardContext) -> Tensor:
    """In place of a model's states."""
    return context.positions[:, None] * 1


def make_context(*, device: torch.device, **fields: Any) -> ForwardContext:
    return to_device(pack(**fields), device, torch.zeros(0, dtype=torch.int64, device=device))


def decode(lengths: list[int], first_page: int, device: torch.device) -> ForwardContext:
    """A token of each sequence, the last of so many; each has pages of its own."""
    tables, page = [], first_page
    for length in lengths:
        count = -(-length // PAGE)
        tables.append(array("i", range(page, page + count)))
        page += count
    assert page <= PAGES
    ends = [length - 1 for length in lengths]
    return make_context(
        token_ids=[7 * length % 50 for length in lengths],
        positions=ends,
        slots=[t[i // PAGE] * PAGE + i % PAGE for t, i in zip(tables, ends, strict=True)],
        sample_rows=list(range(len(lengths))),
        tables=tables,
        starts=list(range(len(lengths) + 1)),
        lengths=lengths,
        device=device,
    )


def new_graphs(
    forward: Callable[[ForwardContext], Tensor],
    device: torch.device,
    capture: Capture | None = None,
) -> DecodeGraphs:
    graphs = DecodeGraphs(
        forward, capture or new_capture(device), most_rows=4, most_blocks=5, device=device
    )
    graphs.capture()
    return graphs


@torch.inference_mode()
def test_a_replayed_step_is_the_eager_one_and_touches_no_other_page(device: torch.device) -> None:
    """Large batches before small ones, so that rows of padding hold what others left there; and
    all pages change hands in between."""
    cache, twin = new_cache(device), new_cache(device)
    graphs, eager = new_graphs(Model(cache), device), Model(twin)
    assert torch.equal(cache.pages, twin.pages)  # capturing has written nothing
    steps = [([20, 9, 3, 12], 0), ([5, 7, 2], 8), ([11], 20), ([13, 6, 6], 1)]
    for lengths, first_page in steps:
        context = decode(lengths, first_page, device)
        before = twin.pages.normal_().clone()
        cache.pages.copy_(before)
        states = graphs.run(context)
        assert states is not None
        assert torch.equal(states, eager(context))
        assert torch.equal(cache.pages, twin.pages)
        changed = (cache.pages != before).flatten(1).any(1).nonzero()[:, 0].tolist()
        assert changed == sorted(slot // PAGE for slot in context.slots.tolist())


class Recording:
    """Captures, and tells which graph was run again."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.captured: list[int] = []
        self.replayed: list[int] = []

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        replay, states = self.capture(run)
        size = len(states)
        self.captured.append(size)

        def replay_and_tell() -> None:
            self.replayed.append(size)
            replay()

        return replay_and_tell, states


@torch.inference_mode()
def test_each_batch_takes_the_smallest_graph_that_holds_it(device: torch.device) -> None:
    recording = Recording(new_capture(device))
    graphs = new_graphs(positions, device, recording)
    assert recording.captured == [4, 2, 1]  # the largest first
    for lengths in ([1], [1, 2], [1, 2, 3], [1, 2, 3, 4]):
        states = graphs.run(decode(lengths, 0, device))
        assert states is not None and states.tolist() == [[n - 1] for n in lengths]
    assert recording.replayed == [1, 2, 4, 4]


@torch.inference_mode()
def test_padding_attends_to_nothing(device: torch.device) -> None:
    graphs = new_graphs(Model(new_cache(device)), device)
    graphs.run(decode([9] * 4, 0, device))
    states = graphs.run(decode([9] * 3, 0, device))
    assert states is not None and states.all()
    padding = states.as_strided((1, HEADS * WIDTH), states.stride(), 3 * HEADS * WIDTH)
    assert not padding.any()


@torch.inference_mode()
def test_what_fits_no_graph_is_left_to_the_caller(device: torch.device) -> None:
    recording = Recording(new_capture(device))
    graphs = new_graphs(positions, device, recording)
    prefill = make_context(
        token_ids=[1, 2],
        positions=[0, 1],
        slots=[0, 1],
        sample_rows=[1],
        tables=[array("i", [0])],
        starts=[0, 2],
        lengths=[2],
        device=device,
    )
    assert graphs.run(prefill) is None
    assert graphs.run(decode([1] * 5, 0, device)) is None  # one row too many
    assert graphs.run(decode([5 * PAGE + 1], 0, device)) is None  # one page too many
    assert graphs.run(decode([5 * PAGE], 0, device)) is not None
    fresh = DecodeGraphs(positions, new_capture(device), most_rows=4, most_blocks=5, device=device)
    assert fresh.run(decode([1], 0, device)) is None  # nothing captured yet
    assert recording.replayed == [1]


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (8, [1, 2, 4, 8]),
        (32, [1, 2, 4, 8, 16, 24, 32]),
        (33, [1, 2, 4, 8, 16, 24, 32, 33]),
    ],
)
def test_batch_sizes(most: int, sizes: list[int]) -> None:
    assert batch_sizes(most) == sizes


@torch.inference_mode()
def test_a_model_says_what_plain_torch_says(device: torch.device, tmp_path: Path) -> None:
    """Two sequences of a Qwen3, their prompts in one step and then, through graphs, token by token:
    the states and pages of the plain twins."""
    directory = make_checkpoint(tmp_path / "model", "qwen3")
    checkpoint, config = open_checkpoint(directory), load_config(directory)
    ours, plain = (
        load_decoder(checkpoint, config, Build(torch.float32, device, kernels))
        for kernels in (TritonKernels(), TorchKernels())
    )
    cache, twin = (new_cache(device, len(config.layers)) for _ in range(2))
    backend, plain_backend = TritonBackend(cache), TorchBackend(twin)

    def forward(context: ForwardContext) -> Tensor:
        return ours(context.token_ids, context.positions, backend.plan(context))

    def compare(context: ForwardContext, states: Tensor | None) -> list[int]:
        """The tokens that come next."""
        plan = plain_backend.plan(context)
        expected = plain(context.token_ids, context.positions, plan)
        torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cache.pages, twin.pages, rtol=1e-4, atol=1e-4)
        return plain.logits(expected[context.sample_rows]).argmax(-1).tolist()

    tables = [array("i", [2, 3, 7]), array("i", [5, 9])]

    def new_context(chunks: list[list[int]], starts: list[int]) -> ForwardContext:
        """chunks: the tokens of each, from its start on."""
        ends = [start + len(chunk) for start, chunk in zip(starts, chunks, strict=True)]
        places = [
            (table, i)
            for table, start, end in zip(tables, starts, ends, strict=True)
            for i in range(start, end)
        ]
        offsets = [0, len(chunks[0]), len(chunks[0]) + len(chunks[1])]
        return make_context(
            token_ids=[*chunks[0], *chunks[1]],
            positions=[i for _, i in places],
            slots=[table[i // PAGE] * PAGE + i % PAGE for table, i in places],
            sample_rows=[end - 1 for end in offsets[1:]],
            tables=tables,
            starts=offsets,
            lengths=ends,
            device=device,
        )

    graphs = DecodeGraphs(forward, new_capture(device), most_rows=2, most_blocks=6, device=device)
    graphs.capture()
    prompts = new_context([[5, 80, 33, 7, 7], [200, 1]], [0, 0])
    assert graphs.run(prompts) is None
    tokens = compare(prompts, forward(prompts))
    for step in range(2):
        context = new_context([[token] for token in tokens], [5 + step, 2 + step])
        tokens = compare(context, graphs.run(context))
