"""The Runner of a real model: Batch -> forward -> sampled tokens, off the event loop."""

from __future__ import annotations

import asyncio
from array import array
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from workers.attention.backend import AttentionBackend
from workers.attention.context import ForwardContext
from workers.attention.kv_cache import KVCache
from workers.core.batch import Batch, Choice, StepOutput
from workers.core.clock import Clock, SystemClock
from workers.core.request import Sequence
from workers.core.runner import ModelInfo, PageStore
from workers.core.waits import to_the_end
from workers.models.decoder import Decoder
from workers.runner.cuda_graphs import Capture, DecodeGraphs
from workers.runner.inputs import build_context, make_context
from workers.sampling.sampler import Sampler


class ModelRunner:
    """All torch work of a step happens on one thread of its own. Nothing global is changed."""

    def __init__(
        self,
        info: ModelInfo,
        decoder: Decoder,
        cache: KVCache,
        backend: AttentionBackend,
        clock: Clock | None = None,
    ) -> None:
        self.info = info
        self.pages: PageStore = cache
        self._cache = cache
        self.decoder = decoder
        self._backend = backend
        self._sampler = Sampler(info.vocab_size, info.eos_token_ids)
        self._clock = SystemClock() if clock is None else clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._busy = False
        self._graphs: DecodeGraphs | None = None
        self.forward_seconds = 0.0  # in the model itself, since start

    async def execute(self, batch: Batch) -> StepOutput:
        """A request without usable logits gets a KvasirError in place of its token."""
        assert not self._busy, "one step at a time"
        # Built here and not on the thread: the event loop may change a sequence (abort) meanwhile.
        context = build_context(batch, self._cache.shape.block_size, self._cache.device)
        sampling = [chunk.sequence for chunk in batch.chunks if chunk.sample]
        loop = asyncio.get_running_loop()
        self._busy = True
        step = loop.run_in_executor(self._thread, self._step, context, sampling)
        try:
            # A forward cannot be stopped and writes pages: a cancelled caller gets them back, to
            # give to somebody else, only when it is over.
            return await to_the_end(step)
        finally:
            self._busy = False

    async def close(self) -> None:
        self._thread.shutdown(wait=False)  # an idle thread ends at once, a hung one never

    def warm_up(self) -> None:
        """A forward of two tokens: lazy initialisation happens before the first request."""
        self._thread.submit(self._warm_up).result()

    def _step(self, context: ForwardContext, sequences: list[Sequence]) -> StepOutput:
        began = self._clock.now()
        tokens: list[Choice] = []
        with torch.inference_mode():
            states = self._last_states(context)
            logits = self.decoder.logits(states) if sequences else states
            self.forward_seconds += self._clock.now() - began
            if sequences:
                tokens = self._sampler.sample(logits, sequences)
        return StepOutput(tuple(tokens))

    def use_graphs(self, capture: Capture, most_rows: int) -> None:
        """Decode steps of up to `most_rows` sequences are captured by warm_up."""
        blocks = -(-self.info.context_length // self._cache.shape.block_size)
        self._graphs = DecodeGraphs(
            self.hidden,
            capture,
            most_rows=most_rows,
            most_blocks=blocks,
            device=self._cache.device,
        )

    def hidden(self, context: ForwardContext, rows: Tensor | None = None) -> Tensor:
        """States [T, hidden] of every token of a step, or of `rows` alone; writes the pages of all.
        For the step's thread, in inference mode."""
        plan = self._backend.plan(context)
        return self.decoder(context.token_ids, context.positions, plan, rows)

    def _last_states(self, context: ForwardContext) -> Tensor:
        """States [n, hidden] of the rows that sample, or of any one row where none does."""
        states = None if self._graphs is None else self._graphs.run(context)
        if states is not None:
            return states[context.sample_rows]
        rows = context.sample_rows if context.sample_rows.numel() else context.positions[:1] * 0
        return self.hidden(context, rows)

    def _warm_up(self) -> None:
        context = make_context(
            token_ids=[0, 0],
            positions=[0, 1],
            slots=[0, 1],
            sample_rows=[1],
            tables=[array("i", [0, 1])],
            starts=[0, 2],
            lengths=[2],
            device=self._cache.device,
        )
        with torch.inference_mode():
            self.decoder.logits(self._last_states(context))
            if self._graphs is not None:
                self._graphs.capture()
