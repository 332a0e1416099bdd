"""A replica of one rank or of several, ready to run: the leader's side of them all."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, NoReturn

import torch

from workers.config import EngineConfig
from workers.core.batch import Batch, StepOutput
from workers.core.clock import Clock, SystemClock
from workers.core.errors import ConfigError, KvasirError, Unavailable
from workers.core.runner import ModelInfo, PageStore
from workers.core.step_estimate import StepEstimate
from workers.layers.expert_load import ExpertBalance
from workers.models.config import load_config
from workers.models.loader import Progress
from workers.models.resolve import resolve_model
from workers.models.split import check_split
from workers.parallel.channel import Kind
from workers.parallel.control import Line
from workers.parallel.group import Ranks
from workers.parallel.launcher import ProcessLauncher, RankLauncher
from workers.parallel.layout import Layout
from workers.parallel.pages import RankedPages
from workers.parallel.ring import RingSender
from workers.parallel.team import Team
from workers.parallel.torch_group import Rendezvous, leader_store
from workers.runner.forward import Forward
from workers.runner.load import load_forward, load_runner
from workers.runner.model_runner import ModelRunner, Parts
from workers.runner.part import head_shares, join, to_wire
from workers.transfer.threads import on_thread

HOST = "127.0.0.1"  # plain processes are all on this machine
LOAD_S = 3600.0  # a rank's weights, whatever they come from
HELLO_S = 130.0


def load_replica(
    model: str,
    config: EngineConfig,
    *,
    device: str | None = None,
    progress: Progress | None = None,
    launcher: RankLauncher | None = None,
    measured: Callable[[Ranks], Ranks] | None = None,
) -> ModelRunner:
    """A runner of max(tensor_parallel, expert_parallel) ranks: this process is the first of them
    and starts the others. Else as load_runner; raises Unavailable too, where a rank is lost.
    `measured` may wrap this rank's groups."""
    layout = Layout(config.tensor_parallel, config.expert_parallel)
    if layout.world == 1:
        return load_runner(model, config, device=device, progress=progress)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if config.threads is None:  # the ranks of a machine share its cores
        cores = len(os.sched_getaffinity(0))
        config = config.model_copy(update={"threads": max(1, cores // layout.world)})
    directory = resolve_model(model)
    # Before processes are started for what cannot be.
    check_split(load_config(directory), layout.tensor, layout.experts)
    leader = _Leader(str(directory), config, layout, place)
    if launcher is None:
        launcher = ProcessLauncher(_follower_env(config, layout, place))
    team = Team(layout.world - 1, launcher, leader.plan)
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
        self, info: ModelInfo, forward: Forward, pages: PageStore, steps: RingSender, team: Team
    ) -> None:
        super().__init__(info, forward, announce=self._tell, pages=pages)
        self._steps = steps
        self._team = team
        self._lost: asyncio.Future[KvasirError] | None = None  # of the loop that asked last
        self._newest: asyncio.Future[StepOutput] | None = None
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
        step = asyncio.ensure_future(super().execute(batch))
        step.add_done_callback(_forget)  # it may be left behind
        before, self._newest = self._newest, step
        return self._outcome(batch, step, before)

    async def balance_experts(self) -> ExpertBalance | None:
        """Raises Unavailable where a rank is lost meanwhile."""
        balance = asyncio.ensure_future(super().balance_experts())
        balance.add_done_callback(_forget)
        await self._over(balance, None)
        return balance.result()

    async def close(self) -> None:
        await super().close()
        await on_thread(self._team.close)

    def _tell(self, parts: Parts) -> None:
        self._steps.send(Kind.STEP, *to_wire(parts))

    def _balance(self) -> ExpertBalance | None:
        self._steps.send(Kind.BALANCE)
        return super()._balance()

    async def _outcome(
        self,
        batch: Batch,
        step: asyncio.Future[StepOutput],
        before: asyncio.Future[StepOutput] | None,
    ) -> StepOutput:
        if (
            before is not None and not before.done()
        ):  # its time counts from when the ranks are free for it
            await self._over(before, None)
        began = self._clock.now()
        limit = self._estimate.limit(batch)
        if not await self._over(step, limit):
            stuck = f"a step of {batch.num_tokens} tokens is stuck for {limit:.0f} s"
            self._team.give_up(Unavailable(stuck))
            await self.fail()
        error = step.exception()
        if isinstance(error, Unavailable):
            raise await on_thread(self._team.blame, error)
        if error is not None and not isinstance(error, KvasirError):
            # The others wait for this rank in the middle of the step.
            self._team.give_up(Unavailable(f"the leader's part of a step failed: {error}"))
        self._estimate.learn(batch, self._clock.now() - began)
        return step.result()

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
        self, directory: str, config: EngineConfig, layout: Layout, device: torch.device
    ) -> None:
        self._directory = directory
        self._config = config
        self._layout = layout
        self._device = device
        self._store = leader_store(HOST)
        self._steps = RingSender(layout.world - 1)
        self._copies = RingSender(layout.world - 1)

    def plan(self, rank: int) -> tuple[Line, tuple[int, ...]]:
        line = {
            "say": "plan",
            "rank": rank,
            "model": self._directory,
            "engine": self._config.model_dump(),
            "device": self._device.type,
            "host": HOST,
            "port": self._store.port,
        }
        return line, (*self._steps.ends(rank - 1), *self._copies.ends(rank - 1))

    def load(
        self,
        team: Team,
        progress: Progress | None,
        measured: Callable[[Ranks], Ranks] | None,
    ) -> RankedRunner:
        """This rank's part, while the others load theirs."""
        team.collect("hello", HELLO_S)
        groups = join(Rendezvous(self._store, HOST, 0), self._layout, self._device)
        info, forward = load_forward(
            self._directory,
            self._config,
            ranks=groups.ranks if measured is None else measured(groups.ranks),
            device=self._device.type,
            progress=progress,
        )
        shares = head_shares(self._layout, forward.decoder.config)
        pages = RankedPages(forward.cache, shares, self._copies, groups.copies)
        return RankedRunner(info, forward, pages, self._steps, team)


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


def _forget(step: asyncio.Future[Any]) -> None:
    if not step.cancelled():
        step.exception()
