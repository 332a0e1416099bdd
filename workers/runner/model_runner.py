"""The Runner of a real model: Batch -> forward -> sampled tokens, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import torch

from workers.config import TransportConfig
from workers.core import request
from workers.core.batch import Batch, StepOutput
from workers.core.runner import ModelInfo, PageStore
from workers.core.span import whole
from workers.layers.expert_load import ExpertBalance
from workers.runner.forward import Forward
from workers.runner.inputs import StepInputs, build_parts
from workers.runner.timer import pick_timer
from workers.sampling.logits import Row
from workers.sampling.plan import SamplingPlan
from workers.sampling.sampled import Computed, Sampled
from workers.sampling.sampler import Sampler
from workers.transfer.link import Transport
from workers.transfer.port import LocalPort, Ports
from workers.transfer.threads import on_thread

Parts: TypeAlias = list[StepInputs]  # of each shard
Announce: TypeAlias = Callable[[Parts], None]  # to the other ranks, before this one's part


class ModelRunner:
    """All work of a step is launched on one thread of its own; where a device computes it, another
    thread waits for what the step sampled. Nothing global is changed.

    `announce` tells followers of a step before this rank begins its part. `pages`: of all ranks.
    """

    def __init__(
        self,
        info: ModelInfo,
        forward: Forward,
        *,
        announce: Announce | None = None,
        pages: PageStore | None = None,
    ) -> None:
        self.info = info
        self.forward = forward
        self.pages: PageStore = forward.cache if pages is None else pages
        self._announce = announce
        self._block_size = forward.cache.shape.block_size
        self._shard_blocks = self.pages.num_blocks // info.shards
        self._sampler = Sampler(info.vocab_size, info.eos_token_ids, forward.cache.device)
        self._sampled: dict[request.Sequence, int] = {}  # places of the newest step's tokens
        self._timer = pick_timer(forward.cache.device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.on_gpu = forward.cache.device.type == "cuda"
        # A CPU has computed everything when a step has been launched.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="tokens") if self.on_gpu else None

    @property
    def forward_seconds(self) -> float:
        """In the model itself, since start."""
        return self._timer.seconds

    def execute(self, batch: Batch) -> Awaitable[StepOutput]:
        # Read here and not on the thread: the event loop changes sequences meanwhile.
        parts = build_parts(
            batch, self._block_size, self._sampled, self.info.shards, self._shard_blocks
        )
        sampling = [chunk for chunk in batch.chunks if chunk.sample]
        self._sampled = {chunk.sequence: place for place, chunk in enumerate(sampling)}
        rows = [Row(chunk.sequence, chunk.end) for chunk in sampling]
        plan = self._sampler.plan(rows) if rows else None
        loop = asyncio.get_running_loop()
        if self._reader is None:
            return loop.run_in_executor(self._thread, self._compute, parts, plan)
        launched = self._thread.submit(self._launch, parts, plan)
        return loop.run_in_executor(self._reader, self._wait, launched)

    async def balance_experts(self) -> ExpertBalance | None:
        """Moves experts to where their load is even, between two steps; see ExpertBalancer."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._balance)

    async def ports(
        self, transports: Sequence[Transport], config: TransportConfig, host: str
    ) -> Ports:
        """Where pairs of this replica end, once. `transports`: of this rank; those of others make
        their own from `config` and, where they are on this machine, `host`."""
        cache = self.forward.cache
        heads = cache.shape.kv_heads
        port = LocalPort(cache, whole(heads), transports, on_thread)
        return Ports(((port,),), heads, cache.block_bytes)

    async def close(self) -> None:
        self._thread.shutdown(wait=False)  # an idle thread ends at once, a hung one never
        if self._reader is not None:
            self._reader.shutdown(wait=False)

    def warm_up(self) -> None:
        self._thread.submit(self.forward.warm_up).result()

    def _launch(self, parts: Parts, plan: SamplingPlan | None) -> Sampled | Computed:
        """On the model's thread. Waits for no device, unless experts are spread."""
        if self._announce is not None:
            self._announce(parts)
        with torch.inference_mode():
            self._timer.begin()
            logits = self.forward.run(parts)
            self._timer.end()
            if plan is None:
                return Computed(self.forward.cache.device)
            assert logits is not None, "a rank without logits leads"
            sampled = self._sampler.launch(logits, plan)
        self.forward.keep(sampled.tokens)
        return sampled

    def _balance(self) -> ExpertBalance | None:
        return self.forward.balance_experts()

    def _compute(self, parts: Parts, plan: SamplingPlan | None) -> StepOutput:
        return StepOutput(tuple(self._launch(parts, plan).read()))

    @staticmethod
    def _wait(launched: Future[Sampled | Computed]) -> StepOutput:
        """On the thread that waits for the device."""
        return StepOutput(tuple(launched.result().read()))
