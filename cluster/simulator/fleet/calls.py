"""Requests on a simulated worker: what workers/prefill.py, decode.py and aggregated.py do for each,
without streams in between."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from cluster.simulator.fleet.desk import Fetch, SimDesk
from cluster.simulator.fleet.engine import SimEngine
from cluster.simulator.fleet.record import Timeline
from cluster.simulator.fleet.stream import SimStream, SimTokens, SimTokensEvent, Tokens
from router.worker_client import WorkerFailed
from workers.core.batch import SequenceUpdate
from workers.core.errors import KvasirError, TicketError
from workers.core.request import Request, Sequence
from workers.core.ticket import Ticket
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker
from workers.wire.codec import finish_to_wire

TRANSPORT = "simulated"
# Reports from one event with tokens to the next: KV tokens that the router has not heard of yet
# stand in the reports.
SPEAK_EVERY = 4


class Host(Protocol):
    """The worker that a call is made to."""

    where: str
    engine: SimEngine
    desk: SimDesk
    token_bytes: int
    tokens: Tokens

    def now(self) -> float: ...

    def forget(self, call: SimCall) -> None:
        """It is over."""

    def desk_of(self, sender: common.ReplicaRef) -> SimDesk:
        """Raises WorkerFailed where that life of it is over."""

    def transfer_s(self, num_bytes: int, sender: str) -> float: ...

    def fetched(self, sender: str, num_bytes: int, seconds: float) -> None:
        """A measurement."""


class SimCall:
    """One Prefill or Decode call."""

    def __init__(self, host: Host, seq: Sequence, request: Request, line: Timeline) -> None:
        self.seq = seq
        self.stream = SimStream(host.where, self._left)
        self._host = host
        self._attempt = request.attempt
        self.line = line
        self._arrived = host.now()

    @property
    def speaks(self) -> bool:
        """Whether the router knows that its prompt is computed."""
        return False

    def stepped(self, update: SequenceUpdate, end: float) -> None:
        """A step that ended then did this to its sequence."""
        raise NotImplementedError

    def flush(self, *, last: bool = False) -> None:
        """Its worker reports: the router may hear of the tokens so far, and of the `last` report it
        does."""

    def dropped(self) -> None:
        """Its worker is dead."""

    def end(self, why: KvasirError) -> None:
        """Its worker's word."""
        self.stream.close(why)
        self._left()

    def _left(self) -> None:
        """Nobody reads it any more: everything it held is freed."""
        self._host.engine.interrupt()
        self._host.engine.scheduler.abort(self.seq)
        self._host.forget(self)

    @property
    def _began(self) -> float:
        at = self.seq.admitted_at
        return self._arrived if at is None else at


class PrefillCall(SimCall):
    """Opened, Progress*, FirstToken, Done. Its ticket outlives it."""

    def __init__(self, host: Host, seq: Sequence, request: Request, line: Timeline) -> None:
        super().__init__(host, seq, request, line)
        self._num_tokens = len(request.token_ids)
        self._ticket: Ticket | None = None

    def stepped(self, update: SequenceUpdate, end: float) -> None:
        seq, desk = self.seq, self._host.desk
        if self._ticket is None:
            self._ticket, told = desk.open(seq, self._num_tokens)
            self._say(opened=worker.Opened(ticket=told, cached_tokens=seq.num_cached))
        if not update.tokens:
            self._say(progress=worker.Progress(computed_tokens=seq.num_computed))
            desk.computed(seq)
            return
        self.line.token(end)
        first = worker.FirstToken(
            token=common.Token(id=update.tokens[0].id, position=update.tokens[0].position),
            finish_reason=finish_to_wire(seq.finish_reason),
            queue_s=self._began - self._arrived,
            prefill_s=end - self._began,
        )
        self._say(first_token=first)
        self._say(done=worker.PrefillDone())
        self.stream.close()
        self._host.forget(self)
        if update.finished:
            desk.end(self._ticket, "finished at the first token")
        else:
            desk.computed(seq)

    def _left(self) -> None:
        if self._ticket is None:
            super()._left()
        else:
            self._host.forget(self)
            self._host.desk.end(self._ticket, "the prefill call was left")

    def _say(self, **what: object) -> None:
        self.stream.put(worker.PrefillEvent(attempt=self._attempt, **what))  # type: ignore[arg-type]


class _Decoding(SimCall):
    """What both kinds of Decode calls do with tokens."""

    due = 0  # position of the first token that the router has not heard of
    _reports = 0  # of its worker, since it decodes

    @property
    def speaks(self) -> bool:
        return self.due > 0

    def stepped(self, update: SequenceUpdate, end: float) -> None:
        if update.tokens:  # else it was preempted, and computes its prompt again
            self.line.token(end)
        if update.finished:
            self._tell(finish_to_wire(self.seq.finish_reason))
            self.stream.close()
            self._host.forget(self)

    def flush(self, *, last: bool = False) -> None:
        if 0 < self.due < len(self.seq.tokens):
            if last or self._reports % SPEAK_EVERY == 0:
                self._tell(common.FINISH_REASON_UNSPECIFIED)
            self._reports += 1

    def _tell(self, finish_reason: common.FinishReason) -> None:
        total = len(self.seq.tokens)
        tokens = self._host.tokens.between(self.due, total)
        self.due = total
        self.stream.put(SimTokensEvent(self._attempt, SimTokens(tokens, finish_reason)))

    def _say(self, **what: object) -> None:
        self.stream.put(worker.DecodeEvent(attempt=self._attempt, **what))  # type: ignore[arg-type]


class AloneCall(_Decoding):
    """Admitted, Progress*, Prefilled, Tokens*."""

    _admitted = False

    def stepped(self, update: SequenceUpdate, end: float) -> None:
        seq = self.seq
        if not self._admitted:
            self._admitted = True
            self._say(
                admitted=worker.Admitted(
                    cached_tokens=seq.num_cached,
                    admit_wait_s=self._began - self._arrived,
                    transport="local",
                )
            )
        if self.due == 0:
            if not update.tokens:
                self._say(progress=worker.Progress(computed_tokens=seq.num_computed))
                return
            self._say(prefilled=worker.Prefilled(prefill_s=end - self._began))
            self.due = update.tokens[0].position
            if not update.finished:
                self._tell(common.FINISH_REASON_UNSPECIFIED)
        super().stepped(update, end)


class DecodeCall(_Decoding):
    """Reserved, fetched, then Admitted and Tokens*."""

    def __init__(
        self,
        host: Host,
        seq: Sequence,
        request: Request,
        line: Timeline,
        ticket: common.Ticket,
        epoch: int,
    ) -> None:
        super().__init__(host, seq, request, line)
        self._ticket = ticket
        self._epoch = epoch
        self._reserved = 0.0
        self._fetch: Fetch | None = None

    def reserved(self) -> None:
        """It has pages: what is not cached here is fetched."""
        host, sender = self._host, self._ticket.prefill
        self._reserved = host.now()
        fetch = Fetch(
            self._ticket.id,
            self._epoch,
            first=self.seq.num_cached,
            token_bytes=host.token_bytes,
            seconds=lambda num_bytes: host.transfer_s(num_bytes, sender.id),
            arrived=self._fetched,
            failed=self.end,
        )
        try:
            host.desk_of(sender).fetch(fetch)
        except (TicketError, WorkerFailed) as error:
            self.end(error)
            return
        if not fetch.over:
            self._fetch = fetch

    def _fetched(self, tokens: list[int]) -> None:
        host, seq, fetch = self._host, self.seq, self._fetch
        assert fetch is not None
        now, self._fetch = host.now(), None
        host.engine.interrupt()
        host.engine.scheduler.start(seq, tokens[len(seq.tokens) :])
        self.due = len(seq.tokens)
        host.engine.wake()
        seconds, exposed_s = now - fetch.began, now - max(fetch.began, fetch.computed_at)
        if exposed_s >= seconds:  # else it waited for what was still computed
            host.fetched(self._ticket.prefill.id, fetch.num_bytes, seconds)
        self._say(
            admitted=worker.Admitted(
                cached_tokens=seq.num_cached,
                fetched_bytes=fetch.num_bytes,
                admit_wait_s=self._reserved - self._arrived,
                transfer_s=seconds,
                transport=TRANSPORT,
                exposed_s=exposed_s,
            )
        )

    def dropped(self) -> None:
        """Its sender may give the ticket to somebody else."""
        fetch, self._fetch = self._fetch, None
        if fetch is not None and not fetch.over:
            with suppress(WorkerFailed):  # its pages went with it
                self._host.desk_of(self._ticket.prefill).leave(fetch)

    def _left(self) -> None:
        super()._left()
        self.dropped()
