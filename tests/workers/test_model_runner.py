"""The runner around the model: event loop, cancellation, sizes."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from tests.checkpoints import make_checkpoint
from workers.attention.backend import AttentionBackend
from workers.attention.context import ForwardContext
from workers.attention.kv_cache import KVCache, KVShape
from workers.config import EngineConfig
from workers.core.batch import Batch, Chunk, SequenceUpdate
from workers.core.errors import Code, KvasirError
from workers.core.hashing import BlockHasher
from workers.core.request import Request, SampledToken, SamplingParams, Sequence
from workers.engine import Engine
from workers.runner import memory
from workers.runner.forward import Forward
from workers.runner.load import load_runner
from workers.runner.model_runner import ModelRunner

SIZES = EngineConfig(dtype="float32", block_size=4, kv_tokens=64)
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"), "llama")


def new_sequence(*tokens: int) -> Sequence:
    sequence = Sequence(Request("r", tokens, len(tokens), GREEDY), BlockHasher(b"", 4))
    sequence.blocks = array("i", [3, 1])
    return sequence


async def test_info_and_a_step(directory: Path) -> None:
    runner = load_runner(str(directory), SIZES, device="cpu")
    assert runner.info.vocab_size == 260
    assert runner.info.context_length == 512
    assert runner.info.eos_token_ids == (257,)
    assert runner.info.kv_bytes_per_token * 4 == runner.pages.block_bytes
    assert runner.pages.num_blocks == 16
    sequence = new_sequence(1, 2, 3)
    silent = await runner.execute(Batch((Chunk(sequence, 0, 2, False),)))
    assert silent.tokens == ()
    spoken = await runner.execute(Batch((Chunk(sequence, 2, 1, True),)))
    (token,) = spoken.tokens
    assert isinstance(token, SampledToken) and token.position == 3
    await runner.close()


class Blocking:
    """An attention backend that waits to be let through, then fails: stands for a slow forward."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()

    def plan(self, context: ForwardContext) -> None:
        self.entered.set()
        self.release.wait()
        raise KvasirError("let through")


def runner_over(loaded: ModelRunner, backend: AttentionBackend) -> ModelRunner:
    """Another runner of the same model and pages."""
    forward = loaded.forward
    return ModelRunner(loaded.info, Forward(forward.decoder, forward.cache, backend))


def blocked_runner(directory: Path) -> tuple[ModelRunner, Blocking]:
    loaded = load_runner(str(directory), SIZES, device="cpu")
    backend = Blocking()
    return runner_over(loaded, backend), backend  # type: ignore[arg-type]


async def test_the_event_loop_stays_free_and_errors_come_through(directory: Path) -> None:
    runner, backend = blocked_runner(directory)
    step = asyncio.ensure_future(runner.execute(Batch((Chunk(new_sequence(1), 0, 1, True),))))
    await asyncio.to_thread(backend.entered.wait)
    assert not step.done()  # and yet we are running
    backend.release.set()
    with pytest.raises(KvasirError, match="let through"):
        await step
    await runner.close()


async def test_a_cancelled_step_gives_its_pages_back_only_when_it_is_over(directory: Path) -> None:
    runner, backend = blocked_runner(directory)
    engine = Engine(runner, block_size=4, step_tokens=8, max_seqs=2)
    sequence = engine.add(Request("r", (1,), 1, GREEDY))
    step = asyncio.create_task(engine.step())
    await asyncio.to_thread(backend.entered.wait)
    engine.abort(sequence)
    assert engine.pool.num_referenced == 1
    for _ in range(3):
        step.cancel()
        await asyncio.sleep(0)
        assert not step.done()
    backend.release.set()
    with pytest.raises(asyncio.CancelledError):
        await step
    await runner.close()


async def test_unusable_logits_are_an_error_of_the_request(directory: Path) -> None:
    runner = load_runner(str(directory), SIZES, device="cpu")
    with torch.no_grad():
        runner.forward.decoder.norm.weight.fill_(float("nan"))
    output = await runner.execute(Batch((Chunk(new_sequence(1), 0, 1, True),)))
    (error,) = output.tokens
    assert isinstance(error, KvasirError) and "request r" in error.message
    await runner.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_what_freed_pages_hold_changes_nothing(directory: Path, dtype: str) -> None:
    """Decodes of unequal length, padded to the longest, over pages that somebody broken left."""
    config = SIZES.model_copy(update={"dtype": dtype})
    params = SamplingParams(temperature=0.0, logprobs=3)
    outputs = []
    for left in (0.0, float("nan")):
        runner = load_runner(str(directory), config, device="cpu")
        assert isinstance(runner.pages, KVCache)
        runner.pages.pages.fill_(left)
        sequences = []
        for blocks, length in (([6], 2), ([9, 4], 7), ([12, 3, 8], 12)):  # 0 belongs to nobody
            prompt = tuple(range(length))
            request = Request(f"r{length}", prompt, length, params)
            sequences.append(Sequence(request, BlockHasher(b"", 4)))
            sequences[-1].blocks = array("i", blocks)
        prefill = [Chunk(seq, 0, len(seq.tokens) - 1, False) for seq in sequences]
        await runner.execute(Batch(tuple(prefill)))
        decode = [Chunk(seq, len(seq.tokens) - 1, 1, True) for seq in sequences]
        outputs.append((await runner.execute(Batch(tuple(decode)))).tokens)
        await runner.close()
    clean, poisoned = outputs
    assert clean == poisoned
    assert all(isinstance(token, SampledToken) for token in clean)


BARRED = SamplingParams(temperature=0.0, min_tokens=3, stop_token_ids=tuple(range(260)))


@pytest.mark.parametrize(
    ("params", "spoil", "code"),
    [(BARRED, False, Code.INVALID_ARGUMENT), (GREEDY, True, Code.INTERNAL)],
    ids=["its parameters", "its pages"],
)
async def test_a_bad_sequence_ends_alone(
    directory: Path, params: SamplingParams, spoil: bool, code: Code
) -> None:
    """Its neighbours say what they say alone. `spoil`: free pages are NaN, and in the middle of
    decoding its own are too."""
    good = SamplingParams(temperature=1.0, seed=5, max_tokens=12, ignore_eos=True)
    prompts = {"short": (1, 2), "bad": (7, 7, 7), "long": (3,) * 9}

    async def ask(*names: str) -> dict[str, list[int] | KvasirError]:
        runner = load_runner(str(directory), SIZES, device="cpu")
        assert isinstance(runner.pages, KVCache)
        if spoil:
            runner.pages.pages.fill_(float("nan"))
        engine = Engine(runner, block_size=4, step_tokens=64, max_seqs=4)
        answers: dict[str, list[int] | KvasirError] = {}

        async def follow(name: str, updates: AsyncIterator[SequenceUpdate]) -> None:
            try:
                answers[name] = [t.id async for update in updates for t in update.tokens]
            except KvasirError as error:
                answers[name] = error

        async with asyncio.TaskGroup() as group:
            for name in names:
                own = params if name == "bad" else good
                seq = engine.new_sequence(Request(name, prompts[name], len(prompts[name]), own))
                group.create_task(follow(name, engine.updates(seq)))
                engine.submit(seq)
                if name == "bad" and spoil:
                    await engine.step()
                    await engine.step()
                    runner.pages.pages[list(seq.blocks)] = float("nan")
            while engine.has_work:
                await engine.step()
                engine.check_integrity()
        assert engine.pool.num_referenced == 0
        await engine.close()
        return answers

    together = await ask("short", "bad", "long")
    error = together.pop("bad")
    assert isinstance(error, KvasirError) and error.code is code
    assert together == await ask("short") | await ask("long")
    assert all(isinstance(tokens, list) and len(tokens) == 12 for tokens in together.values())


def test_loading_tells_how_far_it_is(directory: Path) -> None:
    told: list[tuple[str, float]] = []
    load_runner(str(directory), SIZES, device="cpu", progress=lambda *what: told.append(what))
    assert told[0][0] == "loading weights"
    assert told[-1] == ("warming up", 1.0)


def test_half_precision_halves_the_pages(directory: Path) -> None:
    full = load_runner(str(directory), SIZES, device="cpu")
    half = load_runner(str(directory), SIZES.model_copy(update={"dtype": "bfloat16"}), device="cpu")
    assert half.pages.block_bytes * 2 == full.pages.block_bytes
    assert half.info.kv_abi != full.info.kv_abi


def test_dtype_of_the_config_and_else_of_the_weights(directory: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    auto = SIZES.model_copy(update={"dtype": "auto"})
    config = json.loads((copy / "config.json").read_text())
    for dtype, expected in [("bfloat16", torch.bfloat16), (None, torch.float32)]:
        (copy / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
        runner = load_runner(str(copy), auto, device="cpu")
        assert runner.forward.decoder.head.dtype is expected


def test_pool_size_without_a_wish() -> None:
    shape = KVShape(layers=1, kv_heads=1, head_dim=4, block_size=16, dtype=torch.float32)
    config = EngineConfig(max_seqs=3)
    assert shape.block_bytes == 512
    # a quarter of the memory, but not more than three full contexts of seven blocks
    assert memory.count_blocks(config, shape, 100, available=4 * 512 * 10, share=0.25) == 10
    assert memory.count_blocks(config, shape, 100, available=1 << 40, share=0.25) == 21


def test_a_container_has_less_memory_than_its_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    machine = memory.available_bytes(torch.device("cpu"))
    assert machine > 1 << 20
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert memory.available_bytes(torch.device("cpu")) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes(torch.device("cpu")) > 1 << 20
