"""From a Call to Deltas: tokenise, check, admit, dispatch, make text. What both doors call."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from router.api import Call, Delta, ModelCard, Prompt, Usage
from router.dispatch import Dispatcher
from router.explain.trail import Trail
from router.explain.trails import Trails
from router.flight import BlockIds, Emission
from router.flow.control import FlowControl, Wish
from router.flow.turn import Turn
from router.metrics import RouterMetrics
from router.pool import Pool
from router.recording import Recording
from workers.core.clock import Clock
from workers.core.errors import (
    HTTP_STATUS,
    ContextTooLong,
    InvalidRequest,
    KvasirError,
    ModelNotFound,
)
from workers.core.request import FinishReason, Request
from workers.core.roles import RoleName
from workers.core.validation import (
    check_names,
    check_params,
    check_priority,
    check_token_ids,
)
from workers.text import TextStream, Tokenizer

T = TypeVar("T")
R = TypeVar("R")

THREAD_CHARS = 20_000  # longer texts are tokenised in a thread: the loop has streams to serve
MESSAGE_CHARS = 20  # what a message costs beside its content


class RouterGenerator:
    """Implements router.api.Generator over one model."""

    def __init__(
        self,
        card: ModelCard,
        vocab_size: int,
        tokenizer: Tokenizer,
        pool: Pool,
        flow: FlowControl,
        dispatcher: Dispatcher,
        metrics: RouterMetrics,
        clock: Clock,
        rng: random.Random,
        recording: Recording | None = None,
    ) -> None:
        """`card.context_length` is the model's own; workers may be set to a shorter one.
        `vocab_size`: rows of the model's embedding."""
        self._card = card
        self._vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._pool = pool
        self._flow = flow
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self.trails = Trails(clock)
        self._recording = recording or Recording(clock)
        # One long text at a time, also when its client has gone: a thread cannot be cancelled.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenise")

    def models(self) -> list[ModelCard]:
        return [replace(self._card, context_length=self._most().context)]

    def serves(self, model: str) -> bool:
        return model == self._card.id

    def token_text(self, token_id: int) -> str:
        return self._tokenizer.token_text(token_id)

    async def generate(self, call: Call) -> AsyncGenerator[Delta]:
        """Raises InvalidRequest, ModelNotFound, Overloaded or Unavailable. Close it to cancel."""
        started = self._clock.now()
        with self._counted(call, started) as seen:
            if not self.serves(call.model):
                raise ModelNotFound(call.model, [self._card.id])
            check_names(
                request_id=call.request_id, cache_salt=call.cache_salt, tenant=call.terms.tenant
            )
            check_priority(call.terms.priority)
            check_params(call.params, self._vocab_size)
            with self._flow.arriving(call.terms.slo_class, call.terms.tenant):
                most = self._most()
                tokens = await self._tokenise(call.prompt, most)
                request = self._request(call, tokens, most, seen.trail)
            seen.trail.asked(request)
            self._recording.came(self._class_of(call), request.prompt_len)
            seen.blocks = blocks = BlockIds(request)
            async with self._flow.admit(self._wish(call, blocks, started)) as turn:
                self._metrics.queue_waited(turn.flow.slo_class, turn.waited_s, seen.trail.exemplar)
                seen.trail.let_in(turn.flow.slo_class, turn.waited_s)
                seen.turn = turn
                text = _Text(self._tokenizer, request)
                running = self._dispatcher.run(
                    request, blocks, turn.placed, seen.trail, turn.targets
                )
                async with aclosing(running) as emissions:
                    async for emission in emissions:
                        self._came(emission, started, seen)
                        delta = text.delta(emission)
                        if delta.finish_reason is not None:
                            seen.complete = True
                            seen.trail.finish_reason = delta.finish_reason
                        yield delta
                        if seen.complete:
                            return

    def _wish(self, call: Call, blocks: BlockIds, started: float) -> Wish:
        """The time since it came is gone from its deadline."""
        terms, deadline_s = call.terms, call.terms.deadline_s
        return Wish(
            self._dispatcher.expected_s(blocks),
            slo_class=terms.slo_class,
            tenant=terms.tenant,
            deadline_s=None if deadline_s is None else deadline_s - (self._clock.now() - started),
            priority=terms.priority,
        )

    def _request(self, call: Call, tokens: list[int], most: _Most, trail: Trail) -> Request:
        """Raises ContextTooLong where no worker could hold the prompt and one token."""
        param = _param(call.prompt)
        if not tokens:
            raise InvalidRequest("the prompt is empty", param=param)
        most.check(len(tokens), param)
        asked = call.params
        room = min(most) - len(tokens)
        params = replace(
            asked,
            # a retry goes on with the same sample, so the draw must not be the worker's
            seed=self._rng.getrandbits(63) if asked.seed is None else asked.seed,
            max_tokens=room if asked.max_tokens is None else min(asked.max_tokens, room),
            min_tokens=min(asked.min_tokens, room),
        )
        # clients may use one id twice at once; workers must be able to tell the two apart
        unique = f"{call.request_id}-{self._rng.getrandbits(32):08x}"
        return Request(
            id=unique,
            token_ids=tuple(tokens),
            prompt_len=len(tokens),
            params=params,
            cache_salt=call.cache_salt,
            traceparent=trail.traceparent,
            tracestate="" if trail.trace is None else trail.trace.state,
        )

    async def _tokenise(self, prompt: Prompt, most: _Most) -> list[int]:
        """What cannot fit is refused before any work that grows with its length."""
        if not prompt:
            raise InvalidRequest("the prompt is empty", param="prompt")
        fewest = self._tokenizer.fewest_tokens
        if isinstance(prompt, str):
            most.check(fewest(prompt), "prompt", at_least=True)
            return await self._aside(len(prompt), self._tokenizer.encode, prompt)
        ids = [item for item in prompt if isinstance(item, int)]
        if len(ids) == len(prompt):
            most.check(len(ids), "prompt")
            check_token_ids(ids, self._vocab_size, "prompt")
            return ids
        messages = [item for item in prompt if not isinstance(item, int)]
        size = sum(MESSAGE_CHARS + len(message.get("content", "")) for message in messages)
        text = await self._aside(size, self._tokenizer.chat_text, messages)
        most.check(fewest(text), "messages", at_least=True)
        return await self._aside(len(text), self._tokenizer.encode_chat, text)

    async def _aside(self, size: int, work: Callable[[T], R], what: T) -> R:
        """work(what), in the thread when `size`, in characters, is more than the loop can spare."""
        if size < THREAD_CHARS:
            return work(what)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, what)

    def _came(self, emission: Emission, started: float, seen: _Seen) -> None:
        """Books when tokens came."""
        now = self._clock.now()
        slo_class, count = seen.trail.slo_class, len(emission.tokens)
        self._metrics.generated(count)
        seen.trail.tokens(now, count)
        if seen.last is None:
            seen.ttft_s = now - started
            self._metrics.first_token(slo_class, seen.ttft_s, seen.trail.exemplar)
            self._flow.wake()  # its prefill is over: there is room
        elif count:
            gap_s = now - seen.last
            if not seen.later_tokens:
                self._metrics.second_token(gap_s, seen.trail.exemplar)
            seen.later_tokens += count
            seen.decode_s += gap_s
            self._metrics.next_tokens(slo_class, count, gap_s)
        seen.last = now

    @contextmanager
    def _counted(self, call: Call, started: float) -> Iterator[_Seen]:
        """Books how the request ended, whatever way that was."""
        seen, outcome, failed = _Seen(self.trails.begin(call, started)), "internal", True
        why = ""
        self._metrics.started()
        try:
            yield seen
            outcome, failed = "ok", False
        except (asyncio.CancelledError, GeneratorExit):
            outcome, failed = ("ok" if seen.complete else "cancelled"), False
            raise
        except KvasirError as error:
            outcome, failed = error.code.lower(), HTTP_STATUS[error.code] >= 500
            why = error.message
            raise
        finally:
            self.trails.end(seen.trail, outcome, why)
            ttft_s, itl_s = seen.times()
            slo_class = self._class_of(call)
            self._recording.ended(call, slo_class, seen.trail, seen.blocks, ttft_s, itl_s)
            took_s = self._clock.now() - started
            self._metrics.ended(outcome, took_s, failed=failed, exemplar=seen.trail.exemplar)
            seen.tell(failed=failed)

    def _class_of(self, call: Call) -> str:
        return call.terms.slo_class or self._flow.slo.default

    def _most(self) -> _Most:
        """That workers can do. Context: of the shortest of them, else the model's own. Capacity: of
        the roomiest prefill and the roomiest decode worker both, or of the roomiest aggregated
        one."""
        context, room = 0, dict[RoleName, int]()
        for replica in self._pool:
            length = replica.record.context_length
            context = min(context or length, length)
            room[replica.role] = max(room.get(replica.role, 0), replica.capacity_tokens)
        context = context or self._card.context_length
        alone = room.pop("aggregated", 0)
        return _Most(context, max(alone, min(room.values(), default=0)) or context)


class _Most(NamedTuple):
    """Tokens of a prompt and its answer: that workers are set to, and that their KV pages hold."""

    context: int
    capacity: int

    def check(self, count: int, param: str, *, at_least: bool = False) -> None:
        """Raises ContextTooLong where no worker could hold `count` tokens and one more."""
        if count >= self.context:
            raise ContextTooLong(count, self.context, param=param, at_least=at_least)
        if count >= self.capacity:
            raise ContextTooLong(
                count, self.capacity, what="KV memory", param=param, at_least=at_least
            )


def _param(prompt: Prompt) -> str:
    """The field that clients know it by."""
    chat = not isinstance(prompt, str) and any(isinstance(item, Mapping) for item in prompt[:1])
    return "messages" if chat else "prompt"


@dataclass(slots=True)
class _Seen:
    """What a client has seen of its answer. `complete`: the last delta was given out."""

    trail: Trail
    blocks: BlockIds | None = None
    turn: Turn | None = None
    complete: bool = False
    ttft_s: float = 0.0
    decode_s: float = 0.0  # of `later_tokens`, which came after the first ones
    later_tokens: int = 0
    last: float | None = None  # when tokens came

    def tell(self, *, failed: bool) -> None:
        """Whether its class got what it is promised. Who leaves before the end counts for none."""
        if self.turn is None:
            return
        if failed:
            self.turn.failed()
        elif self.complete:
            self.turn.served(self.ttft_s, self.times()[1])

    def times(self) -> tuple[float | None, float | None]:
        """TTFT and mean ITL, in seconds; None where there was none."""
        count = self.later_tokens
        ttft_s = self.ttft_s if self.last is not None else None
        return ttft_s, self.decode_s / count if count else None


class _Text:
    """One request's text: what tokens say, up to a stop string."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        params = request.params
        self._stream = TextStream(
            tokenizer, request.token_ids, params.stop, min_tokens=params.min_tokens
        )
        self._silent = set(params.stop_token_ids)
        if not params.ignore_eos:
            self._silent.update(tokenizer.eos_token_ids)
        self._prompt_tokens = len(request.token_ids)
        self._emitted = 0

    def delta(self, emission: Emission) -> Delta:
        """The last one has finish_reason and usage."""
        text = self._push(emission)
        self._emitted += len(emission.tokens)
        finish = emission.finish_reason
        if self._stream.stopped is not None:
            finish = FinishReason.STOP
        if finish is None:
            return Delta(text, emission.tokens)
        text += self._stream.finish()
        usage = Usage(self._prompt_tokens, self._emitted, emission.cached_tokens)
        return Delta(text, emission.tokens, finish, usage)

    def _push(self, emission: Emission) -> str:
        """The end-of-sequence or stop token that ends the request has no text of its own."""
        ids = [token.id for token in emission.tokens]
        if emission.finish_reason is FinishReason.STOP and ids and ids[-1] in self._silent:
            ids.pop()
        return self._stream.extend(ids)
