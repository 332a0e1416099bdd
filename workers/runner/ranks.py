"""A replica of one rank or of several, ready to run: the leader's side of them all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from workers.config import EngineConfig, TransportConfig
from workers.core.batch import Batch, StepOutput
from workers.core.clock import Clock, SystemClock
from workers.core.errors import ConfigError, KvasirError, Unavailable
from workers.core.runner import ModelInfo, PageStore
from workers.core.step_estimate import StepEstimate
from workers.layers.expert_load import ExpertBalance
from workers.logs import PLAIN, Voice
from workers.models.config import load_config
from workers.models.loader import Progress
from workers.models.resolve import resolve_model
from workers.models.split import check_split
from workers.parallel.channel import GroupSender, Kind, Sender
from workers.parallel.control import Line
from workers.parallel.group import Ranks
from workers.parallel.launcher import ProcessLauncher, RankLauncher
from workers.parallel.layout import Layout
from workers.parallel.pages import HeadShares, RankedPages
from workers.parallel.port import PortLine, RemotePort
from workers.parallel.ring import RingSender
from workers.parallel.steps import Steps
from workers.parallel.team import Team
from workers.parallel.torch_group import Rendezvous, leader_store
from workers.runner.forward import Forward
from workers.runner.load import load_forward, load_runner
from workers.runner.model_runner import ModelRunner, Parts
from workers.runner.part import GROUP_S, head_shares, join, line_groups, to_wire
from workers.transfer.link import Transport
from workers.transfer.port import LocalPort, Port, Ports
from workers.transfer.threads import on_thread

HOST = "127.0.0.1"  # where all ranks are on this machine
LOAD_S = 3600.0  # a rank's weights, whatever they come from
HELLO_S = 130.0
CLOSE_S = 5.0

T = TypeVar("T")


def load_replica(
    model: str,
    config: EngineConfig,
    *,
    device: str | None = None,
    progress: Progress | None = None,
    launcher: RankLauncher | None = None,
    measured: Callable[[Ranks], Ranks] | None = None,
    voice: Voice = PLAIN,
) -> ModelRunner:
    """A runner of max(tensor_parallel, expert_parallel) ranks: this process is the first of them
    and starts the others, by default as plain processes beside it; `launcher` is closed with them.
    Else as load_runner; raises Unavailable too, where a rank is lost. On other hosts a path must
    name the same checkpoint. `measured` may wrap this rank's groups. `voice`: how the others log.
    """
    layout = Layout(config.tensor_parallel, config.expert_parallel)
    if layout.world == 1:
        return load_runner(model, config, device=device, progress=progress)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if config.threads is None:  # the ranks of a machine share its cores
        cores = len(os.sched_getaffinity(0))
        config = config.model_copy(update={"threads": max(1, cores // layout.world)})
    directory = resolve_model(model)
    # Before processes are started for what cannot be.
    redundant = config.redundant_experts
    check_split(load_config(directory), layout.tensor, layout.experts, redundant)
    if launcher is None:
        launcher = ProcessLauncher(_follower_env(config, layout, place))
    name = str(directory.absolute())
    if launcher.host is not None and not Path(model).expanduser().exists():
        name = model  # of the hub: each host has a copy of its own
    leader = _Leader(name, config, layout, place, launcher.host)
    launcher.reserve(layout.world, place.type == "cuda")
    team = Team(layout.world - 1, launcher, leader.plan, voice=voice)
    try:
        runner = team.guard(partial(leader.load, team, progress, measured))
        runner.warm_up()
        return runner
    except BaseException:  # Ctrl-C too: no rank outlives this
        team.close()
        raise


class RankedRunner(ModelRunner):
    """Runs each step on all ranks. Once a rank is lost every step fails, those under way too."""

    def __init__(
        self,
        info: ModelInfo,
        forward: Forward,
        pages: PageStore,
        steps: Sender,
        copies: Sender,
        team: Team,
        shares: HeadShares,
        done: Steps,
    ) -> None:
        """`steps` and `copies`, which `pages` speaks over, are closed with it. `done` counts its
        steps, and `shares` says which rank has which heads."""
        super().__init__(info, forward, announce=self._tell, pages=pages)
        self._steps = steps
        self._copies = copies
        self._team = team
        self._shares = shares
        self._done = done
        self._lines: list[PortLine] = []
        self._lost: asyncio.Future[KvasirError] | None = None  # of the loop that asked last
        self._newest: asyncio.Future[Any] | None = None  # of what was given to the model's thread
        self._estimate = StepEstimate()
        self._clock: Clock = SystemClock()

    async def fail(self) -> NoReturn:
        """Waits until a rank is lost, and raises the Unavailable that names it."""
        raise await asyncio.shield(self._lost_here())

    def warm_up(self) -> None:
        self._team.guard(super().warm_up)
        self._team.collect("ready", LOAD_S)

    def execute(self, batch: Batch) -> Awaitable[StepOutput]:
        if self._team.loss.done():
            return self.fail()
        step, before = self._given(super().execute(batch))
        return self._outcome(batch, step, before)

    async def balance_experts(self) -> ExpertBalance | None:
        """Raises Unavailable where a rank is lost meanwhile."""
        balance, _ = self._given(super().balance_experts())
        await self._over(balance, None)
        await self._answer_for(balance)
        return balance.result()

    async def ports(
        self, transports: Sequence[Transport], config: TransportConfig, host: str
    ) -> Ports:
        """Raises Unavailable where a rank is lost."""
        shares = self._shares
        local = LocalPort(self.forward.cache, shares.of(0), transports, on_thread)
        ports: list[Port] = [local]
        lines = await on_thread(self._team.lines_beside, HELLO_S)
        for rank, line in enumerate(lines, 1):
            opened = await PortLine.over(line, rank)
            opened.open({"transport": config.model_dump(), "host": host})
            self._lines.append(opened)
            ports.append(RemotePort(opened, rank, self._done, self._team.give_up))
        self._lost_here().add_done_callback(self._end_lines)
        by_shard = [tuple(ports[r] for r in shares.holders(s)) for s in range(shares.shards)]
        return Ports(tuple(by_shard), shares.total, self.pages.block_bytes)

    def _end_lines(self, lost: asyncio.Future[KvasirError]) -> None:
        why = "the replica is closed" if lost.cancelled() else lost.result().message
        for line in self._lines:
            line.end(why)

    async def close(self) -> None:
        for line in self._lines:
            line.end("the replica is closed")
        idle = self._thread.submit(bool)  # behind all that was given to it
        await super().close()
        await on_thread(self._team.close)
        await on_thread(wait, [idle], CLOSE_S)
        if idle.done():  # else a hung thread may still write to them
            self._steps.close()
            self._copies.close()

    def _tell(self, parts: Parts) -> None:
        self._steps.send(Kind.STEP, *to_wire(parts))

    def _balance(self) -> ExpertBalance | None:
        self._steps.send(Kind.BALANCE)
        return super()._balance()

    async def _outcome(
        self,
        batch: Batch,
        step: asyncio.Future[StepOutput],
        before: asyncio.Future[Any] | None,
    ) -> StepOutput:
        # Its time counts from when the ranks are free for it.
        if before is not None and not before.done():
            await self._over(before, None)
        began = self._clock.now()
        limit = self._estimate.limit(batch)
        if not await self._over(step, limit):
            stuck = f"a step of {batch.num_tokens} tokens is stuck for {limit:.0f} s"
            self._team.give_up(Unavailable(stuck))
            await self.fail()
        await self._answer_for(step)
        self._done.over()
        self._estimate.learn(batch, self._clock.now() - began)
        return step.result()

    def _given(self, work: Awaitable[T]) -> tuple[asyncio.Future[T], asyncio.Future[Any] | None]:
        """It, and what was given to the model's thread before it."""
        given = asyncio.ensure_future(work)
        given.add_done_callback(_forget)  # it may be left behind
        before, self._newest = self._newest, given
        return given, before

    async def _answer_for(self, work: asyncio.Future[Any]) -> None:
        """Work that failed ends the team: the others wait for this rank in the middle of it."""
        error = work.exception()
        if isinstance(error, Unavailable):
            raise await on_thread(self._team.blame, error)
        if error is not None and not isinstance(error, KvasirError):
            self._team.give_up(Unavailable(f"the leader's part of a step failed: {error}"))

    async def _over(self, step: asyncio.Future[Any], limit_s: float | None) -> bool:
        """Whether it is, within `limit_s`. Raises the loss of a rank meanwhile."""
        lost = self._lost_here()
        either: set[asyncio.Future[Any]] = {step, lost}
        await asyncio.wait(either, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if not step.done() and lost.done():
            raise lost.result()
        return step.done()

    def _lost_here(self) -> asyncio.Future[KvasirError]:
        loop = asyncio.get_running_loop()
        if self._lost is None or self._lost.get_loop() is not loop:
            self._lost = loop.create_future()
            tell = partial(_pass_on, loop, self._lost)
            self._team.loss.add_done_callback(tell)
        return self._lost


class _Leader:
    """What is made before the followers start, and what they are told."""

    def __init__(
        self,
        model: str,
        config: EngineConfig,
        layout: Layout,
        device: torch.device,
        host: str | None,
    ) -> None:
        """`host`: where followers of other hosts reach this one; None: there are none. Raises
        ConfigError where it is not an address of this host."""
        self._model = model
        self._config = config
        self._layout = layout
        self._device = device
        self._host = host or HOST
        self._rings: tuple[RingSender, ...] = ()
        if host is None:
            self._rings = RingSender(layout.world - 1), RingSender(layout.world - 1)
        try:
            self._store = leader_store(self._host)
        except OSError as error:
            raise ConfigError(f"ranks cannot meet at {self._host}: {error.strerror}") from error

    def plan(self, rank: int) -> tuple[Line, tuple[int, ...]]:
        line = {
            "say": "plan",
            "rank": rank,
            "model": self._model,
            "engine": self._config.model_dump(),
            "device": self._device.type,
            "host": self._host,
            "port": self._store.port,
        }
        return line, tuple(end for ring in self._rings for end in ring.ends(rank - 1))

    def load(
        self,
        team: Team,
        progress: Progress | None,
        measured: Callable[[Ranks], Ranks] | None,
    ) -> RankedRunner:
        """This rank's part, while the others load theirs."""
        team.collect("hello", HELLO_S)
        rendezvous = Rendezvous(self._store, self._host, 0)
        team.loss.add_done_callback(lambda _: _on_its_own(rendezvous.abandon))
        groups = join(rendezvous, self._layout, self._device)
        steps, copies = self._rings or map(
            GroupSender, line_groups(rendezvous, self._layout, GROUP_S)
        )
        info, forward = load_forward(
            self._model,
            self._config,
            ranks=groups.ranks if measured is None else measured(groups.ranks),
            device=self._device.type,
            progress=progress,
        )
        shares = head_shares(self._layout, forward.decoder.config)
        done = Steps()
        pages = RankedPages(forward.cache, shares, copies, groups.copies, done)
        return RankedRunner(info, forward, pages, steps, copies, team, shares, done)


def _follower_env(
    config: EngineConfig, layout: Layout, place: torch.device
) -> list[dict[str, str]]:
    """Of ranks 1, 2, ...: their threads, and each a GPU of its own. Raises ConfigError where there
    are too few."""
    envs = [{"OMP_NUM_THREADS": str(config.threads)} for _ in range(1, layout.world)]
    if place.type != "cuda":
        return envs
    count = torch.cuda.device_count()
    if count < layout.world:
        raise ConfigError(f"{layout.world} ranks need as many GPUs; {count} can be seen")
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(gpu) for gpu in range(count)] if named is None else named.split(",")
    return [env | {"CUDA_VISIBLE_DEVICES": gpu} for env, gpu in zip(envs, gpus[1:], strict=False)]


def _pass_on(
    loop: asyncio.AbstractEventLoop, to: asyncio.Future[KvasirError], loss: Future[KvasirError]
) -> None:
    def settle() -> None:
        if not to.done():
            to.set_result(loss.result())

    with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits any more
        loop.call_soon_threadsafe(settle)


def _on_its_own(work: Callable[[], None]) -> None:
    """The team's thread waits for nothing."""
    threading.Thread(target=work, name="kvasir-abandon", daemon=True).start()


def _forget(step: asyncio.Future[Any]) -> None:
    if not step.cancelled():
        step.exception()
