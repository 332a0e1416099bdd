"""The engine of one replica: schedule, run, update, and who is told about it.

`LLM` calls step() itself; a worker process runs serve(), and its roles follow their sequences with
updates(). Everything but the runner's forward happens on the event loop, so nothing here is locked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from workers.core.batch import Batch, SequenceUpdate, StepOutput
from workers.core.block_pools import BlockPools
from workers.core.clock import Clock, SystemClock
from workers.core.errors import Cancelled, ContextTooLong, InvalidRequest, KvasirError
from workers.core.eviction import EvictionName
from workers.core.hashing import BlockHasher, namespace
from workers.core.request import FinishReason, Request, Sequence
from workers.core.runner import Runner
from workers.core.scheduler import Scheduler
from workers.core.validation import check_params
from workers.core.waits import happens, to_the_end
from workers.inbox import Inbox
from workers.step_log import StepLog
from workers.text import TextStream, Tokenizer

CLOSE_S = 3.0  # a step cannot be stopped, and may hang


@dataclass(frozen=True, slots=True)
class _Step:
    """A batch under way."""

    batch: Batch
    output: asyncio.Future[StepOutput]


class Engine:
    """`overlap`: the next step is scheduled and given to the runner while one runs, so that a
    device never waits for the host. Whoever turns out to have ended computes one step in vain, and
    a request that arrives waits for both."""

    def __init__(
        self,
        runner: Runner,
        *,
        block_size: int,
        step_tokens: int,
        max_seqs: int,
        tokenizer: Tokenizer | None = None,
        clock: Clock | None = None,
        overlap: bool = False,
        eviction: EvictionName = "adaptive",
    ) -> None:
        self.runner = runner
        self.info = runner.info
        self.block_size = block_size
        self.pool = BlockPools(runner.pages.num_blocks, block_size, self.info.shards, eviction)
        self.scheduler = Scheduler(
            self.pool, step_tokens=step_tokens, max_seqs=max_seqs, finish=self._finish_reason
        )
        self.clock = SystemClock() if clock is None else clock
        self.steps = StepLog()
        self.step_began: float | None = None  # while one runs, the oldest under way
        self.max_tokens = min(self.info.context_length, self.pool.most_blocks * block_size)
        self._overlap = overlap
        self._under_way: deque[_Step] = deque()
        self._tokenizer = tokenizer
        self._text: dict[Sequence, TextStream] = {}
        self._listeners: dict[Sequence, Inbox] = {}
        self._changes: dict[Sequence, asyncio.Event] = {}
        self._reservations: deque[tuple[Sequence, asyncio.Future[None]]] = deque()
        self._wake = asyncio.Event()

    # -- sequences in --------------------------------------------------------------------------

    def new_sequence(self, request: Request, *, hold: bool = False, to_come: int = 0) -> Sequence:
        """Options are as in Sequence. Raises InvalidRequest, ContextTooLong."""
        check_params(request.params, self.info.vocab_size)
        if not request.token_ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if not request.params.greedy and request.params.seed is None:
            raise InvalidRequest("a temperature above 0 needs a seed", param="seed")
        if len(request.token_ids) >= self.max_tokens:
            what = "context length" if self.max_tokens == self.info.context_length else "KV pool"
            raise ContextTooLong(len(request.token_ids), self.max_tokens, what=what)
        if min(request.token_ids) < 0 or max(request.token_ids) >= self.info.vocab_size:
            raise InvalidRequest(
                f"token ids must lie in 0..{self.info.vocab_size - 1}", param="prompt"
            )
        space = namespace(self.info.kv_abi, cache_salt=request.cache_salt)
        most = self.max_tokens
        if request.params.max_tokens is not None:
            most = min(most, request.prompt_len + request.params.max_tokens)
        hasher = BlockHasher(space, self.block_size)
        seq = Sequence(request, hasher, hold=hold, to_come=to_come, most_tokens=most)
        if request.params.stop:
            self._text[seq] = self._replayed_text(seq)
        return seq

    def add(self, request: Request, *, hold: bool = False) -> Sequence:
        """Queue a request that is computed here from its first token on."""
        seq = self.new_sequence(request, hold=hold)
        self.submit(seq)
        return seq

    def submit(self, seq: Sequence) -> None:
        self.scheduler.add(seq)
        self._wake.set()

    async def reserve(self, seq: Sequence) -> None:
        """Wait, first come first served, until `seq` has pages for all its tokens."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (seq, granted)
        self._reservations.append(entry)
        self._grant_reservations()
        try:
            await granted
        except asyncio.CancelledError:
            if entry in self._reservations:
                self._reservations.remove(entry)
            self.abort(seq)
            raise

    def start(self, seq: Sequence, tokens: Iterable[int] = ()) -> None:
        """The KV of a reserved sequence has arrived, and `tokens` with it: decode it."""
        arrived = list(tokens)
        stream = self._text.get(seq)
        if stream is not None:
            for token in arrived:
                stream.push(token)
        self.scheduler.start(seq, arrived)
        self._wake.set()

    def freeze(self, seq: Sequence) -> None:
        """`seq` stands still, HELD, now or with its next token; who follows it sees that."""
        self.scheduler.freeze(seq)
        self._wake.set()

    def resume(self, seq: Sequence) -> None:
        """Nobody took `seq`: it goes on here."""
        self.scheduler.resume(seq)
        self._wake.set()

    def pin(self, seq: Sequence) -> None:
        self.scheduler.pin(seq)

    def unpin(self, seq: Sequence) -> None:
        """Nobody else reads its pages any more."""
        self.scheduler.unpin(seq)
        self._pages_freed()

    def abort(self, seq: Sequence, why: KvasirError | None = None) -> None:
        """End `seq`, free what it holds; idempotent. Who follows it gets `why`, or Cancelled."""
        self.scheduler.abort(seq)
        self._tell(seq, why or Cancelled(seq.id))
        self._drop(seq)

    def updates(self, seq: Sequence) -> AsyncIterator[SequenceUpdate]:
        """What each step from now on does to `seq`, to its end or its KvasirError; steps that were
        not read in time come in one. Leaving early does not abort it."""
        inbox = self._listeners[seq] = Inbox()  # now, not at the first await: no step is missed
        return inbox.read()

    def nudge(self, seq: Sequence) -> None:
        """An update that says nothing: who follows `seq` looks up."""
        self._tell(seq, SequenceUpdate(seq))

    async def changed(self, seq: Sequence) -> None:
        """Wait until a step, or an end, changes `seq`, which has not ended."""
        await self._changes.setdefault(seq, asyncio.Event()).wait()

    @property
    def num_waiting_for_pages(self) -> int:
        return len(self._reservations)

    # -- steps -----------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running or self._under_way)

    async def step(self) -> list[SequenceUpdate] | None:
        """Schedule, run, update; what the oldest step under way did, or None where nothing could
        run. A KvasirError of the runner ends the sequences of its batch and is raised; that of one
        sequence ends it and stands in its update. After any other error the engine is over."""
        if not self._under_way and not self._launch():
            return None
        if self._overlap and len(self._under_way) < 2:  # two: a step() was cancelled
            self._launch()
        step = self._under_way[0]
        try:
            # A step cannot be stopped and writes pages: a cancelled caller gets them back, to give
            # to somebody else, only when it is over.
            output = await to_the_end(step.output)
        except KvasirError as error:
            self._end(step)
            for seq in self.scheduler.fail(step.batch):
                self._tell(seq, error)
                self._drop(seq)
            self._grant_reservations()
            raise
        self.steps.record(step.batch, self._end(step))
        updates = self.scheduler.update(step.batch, output)
        for update in updates:
            self._tell(update.sequence, update.error or update)
            if update.finished:
                self._drop(update.sequence)
        self._grant_reservations()
        return updates

    async def serve(self) -> None:
        """Step whenever there is work, until cancelled."""
        while True:
            if not self.has_work:
                self._wake.clear()
                await self._wake.wait()
            try:
                updates = await self.step()
            except KvasirError:
                continue  # told to the sequences it ended
            if updates is None:
                await self._blocked()

    async def close(self) -> None:
        """After serve() or the last step() has ended. What is still under way has a little time."""
        if self._under_way:
            await asyncio.wait([step.output for step in self._under_way], timeout=CLOSE_S)
        await self.runner.close()

    def check_integrity(self) -> None:
        self.scheduler.check_integrity()

    # -- inside ----------------------------------------------------------------------------------

    def _launch(self) -> bool:
        batch = self.scheduler.schedule()
        if batch is None:
            return False
        began = self.clock.now()
        for chunk in batch.chunks:
            if chunk.sequence.admitted_at is None:
                chunk.sequence.admitted_at = began
        output = asyncio.ensure_future(self.runner.execute(batch))
        if not self._under_way:
            self.step_began = began
        self._under_way.append(_Step(batch, output))
        return True

    def _end(self, step: _Step) -> float:
        """The seconds it ran: from when the device was free for it."""
        began, now = self.step_began, self.clock.now()
        assert began is not None and self._under_way[0] is step
        self._under_way.popleft()
        self.step_began = now if self._under_way else None
        return now - began

    async def _blocked(self) -> None:
        """Work waits for pages that tickets or fetches hold: look when one is freed, or soon."""
        self._wake.clear()
        await happens(self._wake, within_s=0.1)

    def _grant_reservations(self) -> None:
        while self._reservations:
            seq, granted = self._reservations[0]
            if not granted.cancelled():
                if not self.scheduler.reserve(seq):
                    return
                granted.set_result(None)
            self._reservations.popleft()

    def _drop(self, seq: Sequence) -> None:
        self._text.pop(seq, None)
        self._listeners.pop(seq, None)
        self._pages_freed()

    def _pages_freed(self) -> None:
        self._grant_reservations()
        self._wake.set()

    def _tell(self, seq: Sequence, what: SequenceUpdate | KvasirError) -> None:
        inbox = self._listeners.get(seq)
        if inbox is not None:
            inbox.put(what)
        change = self._changes.pop(seq, None)
        if change is not None:
            change.set()

    def _replayed_text(self, seq: Sequence) -> TextStream:
        if self._tokenizer is None:
            raise InvalidRequest("stop strings need a tokenizer", param="stop")
        params = seq.request.params
        stream = TextStream(
            self._tokenizer,
            seq.tokens[: seq.prompt_len],
            stop=params.stop,
            min_tokens=params.min_tokens,
        )
        for token in seq.tokens[seq.prompt_len :]:
            stream.push(token)
        return stream

    def _finish_reason(self, seq: Sequence, token: int) -> FinishReason | None:
        params = seq.params
        stream = self._text.get(seq)
        if stream is not None:
            stream.push(token)
        if seq.num_output >= params.min_tokens:
            if not params.ignore_eos and token in self.info.eos_token_ids:
                return FinishReason.STOP
            if token in params.stop_token_ids:
                return FinishReason.STOP
            if stream is not None and stream.stopped is not None:
                return FinishReason.STOP
        return FinishReason.LENGTH if len(seq.tokens) >= seq.most_tokens else None
