"""Replicas whose ranks meet over the network: on this host, and in another network namespace, which
is another host as far as sockets can tell (it shares no abstract socket names either)."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.checkpoints import Example, Oracle, make_checkpoint
from tests.lanes import BothEnds
from workers.attention.kv_cache import KVCache
from workers.config import TransportConfig
from workers.core.errors import ConfigError, Unavailable
from workers.core.request import SamplingParams
from workers.core.span import whole
from workers.llm import LLM
from workers.parallel.control import MAX_LINE, Gone, Wire, connect, listen
from workers.parallel.launcher import Invitation, ProcessLauncher, RankProcess
from workers.parallel.torch_group import Rendezvous
from workers.runner.ranks import RankedRunner
from workers.transfer.pick import pick_transports
from workers.transfer.port import LocalPort, Ports
from workers.transfer.threads import on_thread

NEW_TOKENS = 12
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
HERE, THERE = "198.51.100.1", "198.51.100.2"  # of a network for documentation
NOWHERE = "198.51.100.9"
CLONE_NEWNET = 0x40000000
WAIT_S = 30.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    return make_checkpoint(folder / "model", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def examples(model: Path) -> list[Example]:
    oracle = Oracle(model)
    return [oracle.example(length, NEW_TOKENS) for length in (5, 16, 300)]


def open_llm(model: Path, launcher: ProcessLauncher) -> LLM:
    sizes: dict[str, Any] = {"kv_tokens": 2048, "step_tokens": 128, "threads": 1}
    return LLM(str(model), tensor_parallel_size=2, device="cpu", rank_launcher=launcher, **sizes)


def generate(llm: LLM, examples: list[Example]) -> list[list[int]]:
    return [each.token_ids for each in llm.generate([e.prompt for e in examples], GREEDY)]


class Elsewhere(ProcessLauncher):
    """Starts followers in a network namespace."""

    def __init__(self, namespace: str) -> None:
        super().__init__([{}], host=HERE)
        self.started: list[Any] = []
        self._namespace = Path("/run/netns", namespace)

    def start(self, invitation: Invitation) -> RankProcess:
        # Of this thread alone: the team's own, whose sockets are open already.
        assert threading.current_thread() is not threading.main_thread()
        with self._namespace.open() as namespace:
            moved = ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET)
            assert moved == 0, "this thread is still here"
        self.started.append(super().start(invitation))
        return self.started[-1]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=10)


@pytest.fixture
def namespace() -> Iterator[str]:
    """One that a cable of two ends, here and there, leads to."""
    name, here, there = (f"kv{os.getpid()}{end}" for end in ("ns", "a", "b"))
    try:
        ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no right to make network namespaces: {error}")
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        ip("address", "add", f"{HERE}/24", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", name, "address", "add", f"{THERE}/24", "dev", there)
        ip("-n", name, "link", "set", there, "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield name
        ip("link", "delete", here)  # a namespace goes a while after it is deleted
    finally:
        ip("netns", "delete", name)


def check_pages(llm: LLM) -> None:
    """What is scattered to two ranks, of which each holds half of the heads, is gathered again."""
    runner = llm._engine.runner
    assert isinstance(runner, RankedRunner)
    blocks = [3, 0, 7]
    size = len(blocks) * runner.pages.block_bytes
    sent = runner.pages.new_staging(size)
    sent.copy_(torch.randint(256, (size,), dtype=torch.uint8))
    runner.pages.scatter(sent, blocks)
    came = runner.pages.new_staging(size)
    runner.pages.gather(blocks, came)
    assert torch.equal(came, sent)


async def check_lanes(llm: LLM) -> None:
    """Blocks of a replica of one rank, here, go to each rank's own address, with its heads."""
    runner = llm._engine.runner
    assert isinstance(runner, RankedRunner)
    shape = replace(runner.forward.cache.shape, kv_heads=runner.forward.cache.shape.kv_heads * 2)
    own = KVCache(shape, 4, torch.device("cpu"))
    own.pages.copy_(torch.randn(own.pages.shape))
    config = TransportConfig(backend="gloo")
    transports = pick_transports(config, HERE)
    port = LocalPort(own, whole(shape.kv_heads), transports, on_thread)
    ranked = await runner.ports(transports, config, HERE)
    pair = BothEnds(Ports(((port,),), shape.kv_heads, shape.block_bytes), ranked)
    await pair.connect()
    blocks = [3, 0, 2]
    assert await pair.carry(blocks, [7, 8, 9]) == []
    pair.close()
    sent, came = (own.new_staging(len(blocks) * shape.block_bytes) for _ in range(2))
    own.gather(blocks, sent)
    await on_thread(runner.pages.gather, [7, 8, 9], came)
    assert torch.equal(came, sent)
    for line in runner._lines:
        line.end("over")  # the loop ends here


def test_ranks_over_the_network_say_the_same_and_share_pages(
    model: Path, examples: list[Example]
) -> None:
    with open_llm(model, ProcessLauncher([{}], host="127.0.0.1")) as llm:
        assert generate(llm, examples) == [list(example.output) for example in examples]
        check_pages(llm)


def test_a_rank_on_another_host_computes_until_its_cable_is_pulled(
    namespace: str, model: Path, examples: list[Example]
) -> None:
    launcher = Elsewhere(namespace)
    with open_llm(model, launcher) as llm:
        (follower,) = launcher.started
        assert os.readlink(f"/proc/{follower.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        assert generate(llm, examples) == [list(example.output) for example in examples]
        check_pages(llm)
        asyncio.run(check_lanes(llm))
        ip("link", "set", f"kv{os.getpid()}a", "down")
        with pytest.raises(Unavailable, match="rank 1 of 2 is lost: is silent"):
            generate(llm, examples)
        # The other host never said that it is gone: who waited for it must be told.
        runner = llm._engine.runner
        assert isinstance(runner, RankedRunner)
    for thread in runner._thread._threads:
        thread.join(WAIT_S)
        assert not thread.is_alive(), "a step still waits for a host that vanished"
    assert follower.ended() is not None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_on_another_host_that_dies_or_stops_is_named(
    number: signal.Signals, namespace: str, model: Path, examples: list[Example]
) -> None:
    launcher = Elsewhere(namespace)
    with open_llm(model, launcher) as llm:
        os.kill(launcher.started[0].pid, number)
        with pytest.raises(Unavailable, match="rank 1 of 2 is lost"):
            generate(llm, examples)
    assert launcher.started[0].ended() is not None


def test_who_waits_in_a_group_that_is_abandoned_is_told() -> None:
    store, cpu = dist.HashStore(), torch.device("cpu")
    meeting = [Rendezvous(store, "127.0.0.1", rank) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        joining = [pool.submit(each.group, "x", range(2), cpu, 600.0) for each in meeting]
        group, _ = [each.result(WAIT_S) for each in joining]
        waiting = pool.submit(group.all_reduce, torch.ones(3))
        meeting[0].abandon()
        with pytest.raises(Unavailable, match="rank 0 of 2 lost its group"):
            waiting.result(WAIT_S)


def test_an_address_of_another_host_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match=f"ranks cannot meet at {NOWHERE}: "):
        open_llm(model, ProcessLauncher([{}], host=NOWHERE))


def test_each_end_knows_its_own_address() -> None:
    for host, expected in (("127.0.0.2", "127.0.0.1"), (None, None)):
        listener, address = listen(host)
        with ThreadPoolExecutor(1) as pool, listener:
            accepted = pool.submit(listener.accept)
            near = connect(address, WAIT_S)
            far = Wire(accepted.result(WAIT_S)[0])
        assert near.own_host == expected and far.own_host == host
        near.close()
        far.close()


def test_a_line_without_an_end_is_hung_up_on() -> None:
    ours, theirs = socket.socketpair()
    wire = Wire(ours)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(theirs.sendall, bytes(MAX_LINE + (1 << 18)))
        with pytest.raises(Gone, match="no line ends here"):
            while wire.receive(WAIT_S) is None:
                pass
        wire.close()
    theirs.close()
