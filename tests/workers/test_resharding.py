"""KV that one replica computed and another of any other size goes on from: real ranks, Gloo."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import Example, Oracle, make_checkpoint
from tests.lanes import BothEnds, until
from tests.workers.test_ranks import followers
from workers.config import EngineConfig, TransportConfig
from workers.core import request
from workers.core.errors import Unavailable
from workers.core.request import Request, SamplingParams, SequenceStatus
from workers.engine import Engine
from workers.runner.model_runner import ModelRunner
from workers.runner.ranks import RankedRunner, load_replica
from workers.transfer.pick import pick_transports
from workers.transfer.port import Ports
from workers.transfer.threads import on_thread

HOST = "127.0.0.1"
GLOO = TransportConfig(backend="gloo", connect_timeout_s=20.0, chunk_timeout_s=20.0)
NEW_TOKENS = 8
GREEDY = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
BLOCK_SIZE = 16
SIZES = (1, 2, 4)


@dataclass(frozen=True)
class Replica:
    engine: Engine
    runner: ModelRunner
    ports: Ports

    async def run(self, sequences: Iterable[request.Sequence], until: SequenceStatus) -> None:
        while any(seq.status is not until for seq in sequences):
            await self.engine.step()

    def whole_blocks(self, blocks: Sequence[int]) -> torch.Tensor:
        """Canonical bytes: of all heads, as a single rank would have them."""
        pages = self.runner.pages
        staging = pages.new_staging(len(blocks) * pages.block_bytes)
        pages.gather(blocks, staging)
        found: torch.Tensor = staging
        return found


@asynccontextmanager
async def replica(model: Path, dtype: Any, tensor: int, experts: int = 1) -> AsyncIterator[Replica]:
    config = EngineConfig(
        dtype=dtype,
        block_size=BLOCK_SIZE,
        kv_tokens=2048 * (max(tensor, experts) // tensor),
        step_tokens=64,
        max_seqs=8,
        tensor_parallel=tensor,
        expert_parallel=experts,
        threads=1,
    )
    runner = await on_thread(lambda: load_replica(str(model), config, device="cpu"))
    engine = Engine(runner, block_size=BLOCK_SIZE, step_tokens=64, max_seqs=8)
    try:
        ports = await runner.ports(pick_transports(GLOO, HOST), GLOO, HOST)
        assert (len(ports.by_shard), ports.ranks) == (max(tensor, experts) // tensor, tensor)
        yield Replica(engine, runner, ports)
    finally:
        await engine.close()


def requests(examples: list[Example]) -> list[Request]:
    """Under a salt that nobody had: nothing of them is cached."""
    salt = secrets.token_hex(8)
    return [
        Request(f"r{i}", each.prompt, len(each.prompt), GREEDY, cache_salt=salt)
        for i, each in enumerate(examples)
    ]


async def hand_over(
    sender: Replica, receiver: Replica, examples: list[Example]
) -> list[tuple[list[int], list[int]]]:
    """All prompts are prefilled by one and decoded by the other; the pages of each must be the
    same at both. Returns tokens and the shards (of the sender, of the receiver)."""
    wanted = requests(examples)
    held = [sender.engine.add(each, hold=True) for each in wanted]
    await sender.run(held, SequenceStatus.HELD)
    arrived, tokens = [], []
    for here, what in zip(held, wanted, strict=True):
        there = receiver.engine.new_sequence(what, to_come=1)
        await receiver.engine.reserve(there)
        arrived.append(there)
        count = -(-len(what.token_ids) // BLOCK_SIZE)
        sent, taken = list(here.blocks[:count]), list(there.blocks[:count])
        shards = here.shard, there.shard
        pair = BothEnds(sender.ports, receiver.ports, shards, blocks_per_slot=count)
        await pair.connect()
        await pair.carry(sent, taken)
        pair.close()
        pages = await asyncio.gather(
            on_thread(sender.whole_blocks, sent), on_thread(receiver.whole_blocks, taken)
        )
        assert pages[0].any() and torch.equal(*pages), f"{what.id}: KV changed on its way"
        receiver.engine.start(there, here.tokens[len(what.token_ids) :])
    await receiver.run(arrived, SequenceStatus.FINISHED)
    for here, there in zip(held, arrived, strict=True):
        sender.engine.abort(here)
        tokens.append((there.tokens[there.prompt_len :], [here.shard, there.shard]))
    for each in (sender, receiver):
        each.engine.check_integrity()
        assert each.engine.pool.num_referenced == 0
    return tokens


def tokens_of(found: list[tuple[list[int], list[int]]]) -> list[list[int]]:
    return [tokens for tokens, _ in found]


def expected(examples: list[Example]) -> list[list[int]]:
    return [list(example.output) for example in examples]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Example]]:
    """Four query heads, two KV heads: four ranks hold each twice. The margin of each token is
    above 1e-3, and transformers said it."""
    directory = make_checkpoint(tmp_path_factory.mktemp("resharding") / "model")
    oracle = Oracle(directory)
    return directory, [oracle.example(length, NEW_TOKENS) for length in (5, 16, 100)]


async def test_two_ranks_go_on_from_the_kv_of_one(llama: tuple[Path, list[Example]]) -> None:
    model, examples = llama
    async with replica(model, "float32", 1) as sender, replica(model, "float32", 2) as receiver:
        assert tokens_of(await hand_over(sender, receiver, examples)) == expected(examples)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_kv_goes_between_all_sizes(dtype: str, llama: tuple[Path, list[Example]]) -> None:
    """In float32 the tokens are those of the aggregated engine, which are those of transformers; in
    both the pages are the same, byte for byte."""
    model, examples = llama
    async with AsyncExitStack() as stack:
        senders, receivers = [
            {size: await stack.enter_async_context(replica(model, dtype, size)) for size in SIZES}
            for _ in range(2)
        ]
        alone = [senders[1].engine.add(each) for each in requests(examples)]
        await senders[1].run(alone, SequenceStatus.FINISHED)
        aggregated = [seq.tokens[seq.prompt_len :] for seq in alone]
        if dtype == "float32":
            assert aggregated == expected(examples)
        for one, sender in senders.items():
            for other, receiver in receivers.items():
                found = tokens_of(await hand_over(sender, receiver, examples))
                assert all(len(tokens) == NEW_TOKENS for tokens in found)
                if dtype == "float32":
                    assert found == aggregated, f"{one} -> {other}"


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), [(4, 1), (1, 2), (2, 4)])
async def test_a_latent_comes_from_one_rank(one: int, other: int, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", "deepseek_v3")
    oracle = Oracle(model)
    examples = [oracle.example(length, NEW_TOKENS) for length in (5, 100)]
    async with replica(model, "float32", one) as sender, replica(model, "float32", other) as there:
        assert sender.ports.kv_heads == 1
        assert len(BothEnds(sender.ports, there.ports).lanes) == other
        assert tokens_of(await hand_over(sender, there, examples)) == expected(examples)


@pytest.mark.slow
async def test_shards_exchange_kv_with_replicas_of_other_sizes(tmp_path: Path) -> None:
    """Data-parallel attention: two shards of two ranks, whose ranks share the experts."""
    model = make_checkpoint(tmp_path / "model", "qwen3_moe")
    oracle = Oracle(model)
    examples = [oracle.example(length, NEW_TOKENS) for length in (5, 16, 100, 33)]
    async with (
        replica(model, "float32", 2, experts=4) as sharded,
        replica(model, "float32", 1) as single,
    ):
        for sender, receiver, place in ((sharded, single, 0), (single, sharded, 1)):
            found = await hand_over(sender, receiver, examples)
            assert tokens_of(found) == expected(examples)
            assert {shards[place] for _, shards in found} == {0, 1}


@pytest.mark.slow
async def test_the_pairs_of_a_replica_end_with_any_of_its_ranks(
    llama: tuple[Path, list[Example]],
) -> None:
    """Both ends know, whoever of them is idle."""
    model, _ = llama
    async with replica(model, "float32", 1) as sender, replica(model, "float32", 2) as receiver:
        pair = BothEnds(sender.ports, receiver.ports)
        await pair.connect()
        assert pair.sender.failed is None and pair.receiver.failed is None
        (follower,) = followers(os.getpid())
        os.kill(follower, signal.SIGKILL)
        await until(lambda: pair.sender.failed is not None and pair.receiver.failed is not None)
        assert isinstance(receiver.runner, RankedRunner)
        with pytest.raises(Unavailable, match="rank 1 of 2 is lost: killed by SIGKILL"):
            await receiver.runner.fail()
