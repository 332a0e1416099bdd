"""Replicas of several ranks as real processes: their tokens, their pages, and their deaths."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import Example, Oracle, make_checkpoint
from tests.handoff import aggregated, both
from tests.workers.processes import WorkerProcess, workers
from workers.core.errors import CheckpointError, ConfigError, Unavailable
from workers.core.request import Request, SamplingParams
from workers.llm import LLM
from workers.runner.ranks import RankedRunner
from workers.wire import worker_pb2 as worker
from workers.wire.codec import request_to_wire
from workers.wire.decode_client import DecodeFailed

NEW_TOKENS = 12
START_S = 90.0
NOTICE_S = 30.0  # far more than the three seconds that are promised: machines are busy
ENGINE: dict[str, Any] = {"dtype": "float32", "kv_tokens": 8192, "step_tokens": 256, "threads": 1}
GLOO = {"backend": "gloo", "inline_bytes": 0}
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
LONG = 3000  # tokens: what is still running when something happens to it


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    return make_checkpoint(folder / "model", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def examples(model: Path) -> list[Example]:
    """Shorter than a block, chunked, and with a common prefix."""
    oracle = Oracle(model)
    found = [oracle.example(length, NEW_TOKENS) for length in (5, 16, 700)]
    return [*found, oracle.example(300, NEW_TOKENS, prefix=found[-1].prompt[:200])]


def followers(leader: int) -> list[int]:
    """Pids of the living processes that were started as ranks of this leader."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            named = b"--parent" in argv and argv[argv.index(b"--parent") + 1] == b"%d" % leader
            if named and state != "Z":
                found.append(int(entry.name))
    return found


async def until(true: Callable[[], bool], what: str, within_s: float = NOTICE_S) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not true():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(what) from None


async def follower_of(process: WorkerProcess) -> int:
    pid = process.process.pid
    await until(lambda: bool(followers(pid)), "no follower starts", START_S)
    return followers(pid)[0]


def is_loading(follower: int) -> bool:
    """It has heard its leader's plan: the step channel is in its memory."""
    try:
        return "kvasir-steps" in Path(f"/proc/{follower}/maps").read_text()
    except OSError:
        return False


def generate(llm: LLM, examples: list[Example]) -> list[list[int]]:
    return [each.token_ids for each in llm.generate([e.prompt for e in examples], GREEDY)]


def test_ranks_say_what_transformers_says_until_one_is_lost(
    model: Path, examples: list[Example]
) -> None:
    """Cold, chunked, with prefix hits, and each step prepared while another runs."""
    expected = [list(example.output) for example in examples]
    options: dict[str, Any] = {"overlap": True, "kv_tokens": 4096, "step_tokens": 128}
    with LLM(str(model), tensor_parallel_size=2, **options) as llm:
        assert len(followers(os.getpid())) == 1
        assert generate(llm, examples) == expected
        assert generate(llm, examples) == expected, "with prefix hits"
        os.kill(followers(os.getpid())[0], signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(Unavailable, match="rank 1 of 2 is lost: killed by SIGKILL"):
                generate(llm, examples)
    assert not followers(os.getpid())


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_tokens_do_not_depend_on_the_number_of_ranks(
    size: int, overlap: bool, model: Path, examples: list[Example]
) -> None:
    """Four ranks share two KV heads."""
    expected = [list(example.output) for example in examples]
    options: dict[str, Any] = {"overlap": overlap, "kv_tokens": 4096, "step_tokens": 128}
    with LLM(str(model), tensor_parallel_size=size, **options) as llm:
        assert len(followers(os.getpid())) == size - 1
        assert generate(llm, examples) == expected
        assert generate(llm, examples) == expected, "with prefix hits"
    assert not followers(os.getpid())


@pytest.mark.slow
@pytest.mark.parametrize(("tensor", "experts"), [(1, 2), (2, 2), (2, 4), (4, 2), (1, 4)])
def test_tokens_do_not_depend_on_who_has_the_experts(
    tensor: int, experts: int, tmp_path: Path
) -> None:
    mixture = make_checkpoint(tmp_path / "model", "qwen3_moe", max_position_embeddings=4096)
    oracle = Oracle(mixture)
    examples = [oracle.example(length, NEW_TOKENS) for length in (5, 16, 300)]
    with LLM(
        str(mixture),
        tensor_parallel_size=tensor,
        expert_parallel_size=experts,
        kv_tokens=4096,
        step_tokens=128,
    ) as llm:
        assert len(followers(os.getpid())) == max(tensor, experts) - 1
        for _ in range(2):
            assert generate(llm, examples) == [list(example.output) for example in examples]
    assert not followers(os.getpid())


@pytest.mark.slow
def test_a_step_that_is_stuck_ends_all_ranks(model: Path, examples: list[Example]) -> None:
    """The follower lives and beats, but never hears of the step that the leader waits in."""
    with LLM(str(model), tensor_parallel_size=2, kv_tokens=4096) as llm:
        generate(llm, examples)
        runner = llm._engine.runner
        assert isinstance(runner, RankedRunner)
        runner._tell = lambda parts: None  # type: ignore[method-assign]
        runner._announce = runner._tell
        with pytest.raises(Unavailable, match="a step of .* tokens is stuck for 10 s"):
            generate(llm, examples)
        assert not followers(os.getpid())


def test_sizes_that_the_model_does_not_have_start_nobody(model: Path) -> None:
    with pytest.raises(ConfigError, match="3 does not divide 4 attention heads"):
        LLM(str(model), tensor_parallel_size=3)
    assert not followers(os.getpid())


@pytest.mark.slow
def test_what_cannot_be_loaded_leaves_no_rank(model: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        LLM(str(tmp_path), tensor_parallel_size=2)
    assert not followers(os.getpid())


async def check_handoffs(
    tmp_path: Path, model: Path, examples: list[Example], one: int, other: int
) -> None:
    """Both ways between replicas of `one` and of `other` ranks, each request in one of them too."""
    async with workers(
        tmp_path,
        model,
        x={"role": "aggregated", "engine": ENGINE | {"tensor_parallel": one}, "transport": GLOO},
        y={"role": "aggregated", "engine": ENGINE | {"tensor_parallel": other}, "transport": GLOO},
    ) as up:
        for here, there in ((up["x"], up["y"]), (up["y"], up["x"])):
            for number, example in enumerate(examples):
                what = Request(f"{number}", example.prompt, len(example.prompt), GREEDY)
                admitted, tokens = await both(here.stub.Prefill, there.decode, what)
                assert tokens == list(example.output), f"prompt of {len(example.prompt)}"
            assert admitted.transport == "gloo"  # the first need not wait for the pair
            everybody = [
                aggregated(here.decode, Request(f"a{n}", e.prompt, len(e.prompt), GREEDY))
                for n, e in enumerate(examples)
            ]
            answers = await asyncio.gather(*everybody)
            assert [tokens for _, tokens in answers] == [list(e.output) for e in examples]
            await here.idle()
        pids = [process.process.pid for process in up.values()]
        assert [len(followers(pid)) for pid in pids] == [one - 1, other - 1]
    assert not any(followers(pid) for pid in pids)


async def test_pages_go_between_replicas_of_two_ranks_and_of_one(
    tmp_path: Path, model: Path, examples: list[Example]
) -> None:
    await check_handoffs(tmp_path, model, examples, 2, 1)


@pytest.mark.slow
async def test_pages_go_between_replicas_of_four_ranks_and_of_two(
    tmp_path: Path, model: Path, examples: list[Example]
) -> None:
    await check_handoffs(tmp_path, model, examples, 4, 2)


@pytest.fixture
async def replica(tmp_path: Path, model: Path) -> AsyncIterator[WorkerProcess]:
    """A worker of two ranks, not yet ready. Whatever happened to it, nobody is left of it."""
    config = {"engine": ENGINE | {"tensor_parallel": 2, "kv_tokens": 16384}}
    process = WorkerProcess(tmp_path, "x", "aggregated", model, **config)
    yield process
    process.kill()
    await asyncio.to_thread(process.process.wait)


async def ends_by_itself(process: WorkerProcess, follower: int) -> None:
    """Exit code 1, so that it is started again, with the lost rank named; no rank is left."""
    code = await asyncio.wait_for(asyncio.to_thread(process.process.wait, NOTICE_S), NOTICE_S + 1)
    log = process.log.read_text()
    assert code == 1, log
    assert "rank 1 of 2 is lost" in log
    await until(lambda: not Path(f"/proc/{follower}").exists(), "the follower is still there")


async def begin(process: WorkerProcess, name: str, phase: str) -> Any:
    """A request of 3,000 prompt tokens that has come to this event."""
    prompt = tuple(random.Random(name).choices(range(200), k=LONG))
    params = SamplingParams(temperature=0.0, max_tokens=900, ignore_eos=True)
    what = Request(name, prompt, len(prompt), params)
    call = process.decode(worker.DecodeRequest(sequence=request_to_wire(what)))
    while (await call.read()).WhichOneof("event") != phase:
        pass
    return call


async def is_failed(call: Any) -> None:
    with pytest.raises(DecodeFailed) as caught:
        while await call.read() is not None:
            pass
    assert caught.value.status == "UNAVAILABLE"


FAST = (signal.SIGSTOP, "tokens")


@pytest.mark.parametrize(
    ("number", "phase"),
    [
        pytest.param(number, phase, marks=() if (number, phase) == FAST else pytest.mark.slow)
        for number in (signal.SIGKILL, signal.SIGSTOP)
        for phase in ("loading", "idle", "progress", "tokens")
    ],
)
async def test_a_rank_that_dies_or_stops_takes_the_replica_down(
    number: signal.Signals, phase: str, replica: WorkerProcess
) -> None:
    follower = await follower_of(replica)
    calls: list[Any] = []
    if phase == "loading":
        await until(lambda: is_loading(follower), "the follower never loads", START_S)
    else:
        await replica.ready()
        if phase != "idle":
            calls = [await begin(replica, f"r{n}", phase) for n in range(3)]
    os.kill(follower, number)
    for call in calls:
        await is_failed(call)
    await ends_by_itself(replica, follower)


@pytest.mark.slow
async def test_no_rank_outlives_a_killed_leader(replica: WorkerProcess) -> None:
    follower = await follower_of(replica)
    await until(lambda: is_loading(follower), "the follower never loads", START_S)
    replica.kill(signal.SIGKILL)
    await until(lambda: not followers(replica.process.pid), "the follower is still there")


@pytest.mark.slow
async def test_a_stopped_follower_dies_with_its_leader(replica: WorkerProcess) -> None:
    """The line's end is of no use to it, the kernel's signal is."""
    follower = await follower_of(replica)
    await replica.ready()
    os.kill(follower, signal.SIGSTOP)
    replica.kill(signal.SIGKILL)
    await until(lambda: not followers(replica.process.pid), "the follower is still there")


SCRIPT = """
import sys
from workers.llm import LLM, SamplingParams
from workers.wire.decode_client import DecodeFailed
with LLM(sys.argv[1], tensor_parallel_size=2, kv_tokens=4096, threads=1) as llm:
    print("up", flush=True)
    params = SamplingParams(temperature=0.0, max_tokens=3000, ignore_eos=True)
    while True:
        llm.generate([[1, 2, 3]], params)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["starting", "loading", "generating"])
async def test_no_rank_outlives_a_script(
    number: signal.Signals, moment: str, model: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as out:
        script = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(model)], stdout=out, stderr=out
        )
    try:
        await until(lambda: bool(followers(script.pid)), "no follower starts", START_S)
        follower = followers(script.pid)[0]
        if moment == "loading":
            await until(lambda: is_loading(follower), "the follower never loads", START_S)
        elif moment == "generating":
            await until(lambda: "up" in log.read_text().splitlines(), "it is never up", START_S)
            await asyncio.sleep(0.5)
        script.send_signal(number)
        await asyncio.to_thread(script.wait, NOTICE_S)
        await until(lambda: not followers(script.pid), "the follower is still there")
    finally:
        script.kill()
        script.wait()
