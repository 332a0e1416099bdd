"""The gRPC doors: Inference for clients, Admin for operators. Messages in and out, nothing else."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import NoReturn

import grpc
from pydantic import ValidationError

from router.api import Call, Delta, Generator, Prompt, Terms
from router.doors.grpc import secret_in
from router.doors.keys import ApiKeys
from router.explain.answer import explain, recent
from router.explain.predictions import request_errors
from router.explain.scale import Plans, explain_scale
from router.explain.trails import Trails
from router.flow.book import REFUSALS, Outcome, Result
from router.flow.classes import SloConfig
from router.flow.control import FlowControl
from router.index.fsck import Fsck
from router.index.prefix import PrefixMirror
from router.latency.errors import Errors, ErrorTrack, Kind
from router.metrics import RouterMetrics
from router.pool import Pool
from router.recording import Recording
from router.replica import Replica
from router.roles import set_role
from router.sharing.sharing import Sharing
from router.tickets import ask_tickets
from router.tracing.rpc import visited
from router.tracing.tracer import Tracer
from workers.core.errors import InvalidRequest, KvasirError, RequestNotFound
from workers.wire import admin_pb2 as admin
from workers.wire import admin_pb2_grpc as admin_grpc
from workers.wire import inference_pb2 as inference
from workers.wire import inference_pb2_grpc as inference_grpc
from workers.wire import worker_pb2 as worker
from workers.wire.codec import finish_to_wire, params_from_wire, token_to_wire

log = logging.getLogger(__name__)


class InferenceService(inference_grpc.InferenceServicer):
    """kvasir.v1.Inference over any Generator. `refused` hears of requests that never got to it."""

    def __init__(
        self,
        generator: Generator,
        refused: Callable[[KvasirError], None],
        tracer: Tracer | None = None,
        keys: ApiKeys | None = None,
    ) -> None:
        self._generator = generator
        self._refused = refused
        self._tracer = tracer
        self._keys = keys

    async def Generate(
        self, request: inference.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[inference.GenerateResponse]:
        request_id = request.request_id or new_request_id()
        chat = request.WhichOneof("prompt") == "chat"
        try:
            async with visited(self._tracer, context, request_id, chat=chat) as visit:
                call = Call(
                    model=request.model,
                    prompt=self._prompt(request),
                    params=params_from_wire(request.sampling),
                    request_id=request_id,
                    cache_salt=request.cache_salt,
                    terms=Terms(
                        slo_class=request.slo_class or None,
                        tenant=request.tenant,
                        deadline_s=context.time_remaining(),
                        priority=request.priority,
                    ),
                    visit=visit,
                )
                with self._let_in(call, context) as call:
                    async with aclosing(self._generator.generate(call)) as deltas:
                        async for delta in deltas:
                            yield _response(request_id, delta)
        except KvasirError as error:
            await _abort(context, error)
        except Exception:
            log.exception("%s: unexpected", request_id)
            await context.abort(grpc.StatusCode.INTERNAL, f"internal error (request {request_id})")

    @contextmanager
    def _let_in(self, call: Call, context: grpc.aio.ServicerContext) -> Iterator[Call]:
        """As its key has it. Raises PermissionDenied, Overloaded."""
        if self._keys is None:
            yield call
            return
        key = self._keys.find(secret_in(context.invocation_metadata()))
        with self._keys.using(key):
            yield key.call(call)

    def _prompt(self, request: inference.GenerateRequest) -> Prompt:
        kind = request.WhichOneof("prompt")
        if kind == "text":
            return request.text
        if kind == "token_ids":
            return list(request.token_ids.ids)
        if kind == "chat":
            return [{"role": m.role, "content": m.content} for m in request.chat.messages]
        error = InvalidRequest("one of text, token_ids and chat must be set", param="prompt")
        self._refused(error)
        raise error

    async def ListModels(
        self, request: inference.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> inference.ListModelsResponse:
        models = [
            inference.Model(id=card.id, context_length=card.context_length)
            for card in self._generator.models()
        ]
        return inference.ListModelsResponse(models=models)


class AdminService(admin_grpc.AdminServicer):
    """kvasir.v1.Admin: what the router knows, and what its workers say when asked."""

    def __init__(
        self,
        model: str,
        pool: Pool,
        index: PrefixMirror,
        flow: FlowControl,
        metrics: RouterMetrics,
        fsck: Fsck | None,
        trails: Trails,
        errors: Errors,
        recording: Recording,
        sharing: Sharing | None,
        plans: Plans,
    ) -> None:
        self._model = model
        self._pool = pool
        self._index = index
        self._flow = flow
        self._metrics = metrics
        self._fsck = fsck
        self._trails = trails
        self._errors = errors
        self._sharing = sharing
        self._recording = recording
        self._plans = plans

    async def Status(
        self, request: admin.StatusRequest, context: grpc.aio.ServicerContext
    ) -> admin.StatusResponse:
        return admin.StatusResponse(
            model=self._model,
            replicas=[self._status(replica) for replica in self._pool],
            requests_in_flight=self._flow.in_flight,
            requests_total=self._metrics.total,
            requests_failed=self._metrics.failed,
            redis_up=self._pool.redis_up,
            index_blocks=len(self._index),
            classes=[self._class_status(name) for name in self._flow.slo.classes],
            requests=_predictions(request_errors(self._trails)),
            router=self._sharing.id if self._sharing is not None else "",
            others=self._sharing.others() if self._sharing is not None else (),
        )

    async def SetSlo(
        self, request: admin.SetSloRequest, context: grpc.aio.ServicerContext
    ) -> admin.SetSloResponse:
        try:
            self._flow.change(SloConfig.model_validate_json(request.json))
        except ValidationError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        log.info("new service classes: %s", request.json)
        return admin.SetSloResponse()

    async def SetRole(
        self, request: admin.SetReplicaRoleRequest, context: grpc.aio.ServicerContext
    ) -> admin.SetReplicaRoleResponse:
        try:
            was = await set_role(self._pool, request.replica, request.role)
        except KvasirError as error:
            await _abort(context, error)
        return admin.SetReplicaRoleResponse(was=was)

    async def Tickets(
        self, request: worker.TicketsRequest, context: grpc.aio.ServicerContext
    ) -> admin.ClusterTickets:
        return await ask_tickets(self._pool)

    async def Fsck(
        self, request: admin.FsckRequest, context: grpc.aio.ServicerContext
    ) -> admin.FsckResponse:
        """UNIMPLEMENTED for a router without Redis: nothing is written that could be compared."""
        if self._fsck is None:
            return await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this router has no Redis")
        return await self._fsck.run(request.repair)

    async def ExplainRequest(
        self, request: admin.ExplainRequestRequest, context: grpc.aio.ServicerContext
    ) -> admin.ExplainRequestResponse:
        try:
            return explain(self._trails, request.id)
        except RequestNotFound as error:
            await _abort(context, error)

    async def RecentRequests(
        self, request: admin.RecentRequestsRequest, context: grpc.aio.ServicerContext
    ) -> admin.RecentRequestsResponse:
        return recent(self._trails, request.limit)

    async def ExplainScale(
        self, request: admin.ExplainScaleRequest, context: grpc.aio.ServicerContext
    ) -> admin.ExplainScaleResponse:
        try:
            return await explain_scale(self._plans)
        except KvasirError as error:
            await _abort(context, error)

    async def Record(
        self, request: admin.RecordRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[admin.RecordedBatch]:
        try:
            follow = self._recording.follow(
                request.salt,
                steps=request.steps,
                blocks=not request.no_blocks,
                arrivals=request.arrivals,
            )
            async with aclosing(follow) as batches:
                async for batch in batches:
                    yield batch
        except InvalidRequest as error:
            await _abort(context, error)

    def _class_status(self, name: str) -> admin.ClassStatus:
        book = self._flow.book
        outcomes, results = book.outcomes(name), book.results(name)
        return admin.ClassStatus(
            name=name,
            queued=book.queued[name],
            admitted=outcomes[Outcome.ADMITTED],
            refused=sum(outcomes[outcome] for outcome in REFUSALS),
            good=results[Result.GOOD],
            ended=results.total(),
        )

    def _status(self, replica: Replica) -> admin.ReplicaStatus:
        load = worker.LoadReport()
        load.CopyFrom(replica.load)
        load.replica.id = replica.id
        load.replica.incarnation = replica.incarnation
        load.replica.address = replica.record.address
        load.state = load.state or replica.state.value
        if not load.role:
            load.role = replica.role_on_wire
        return admin.ReplicaStatus(
            pool=replica.record.pool,
            load=load,
            up=replica.alive,
            indexed_blocks=self._index.count(replica.id),
            predictions=_predictions(self._errors.of(replica.id)),
        )


def _predictions(tracks: Mapping[Kind, ErrorTrack]) -> Iterator[admin.Prediction]:
    for kind, track in tracks.items():
        yield admin.Prediction(
            kind=kind,
            count=track.count,
            predicted_s=track.predicted_s,
            actual_s=track.actual_s,
            error=track.error,
            bias=track.bias,
        )


def new_request_id() -> str:
    return f"req-{secrets.token_hex(12)}"


def _response(request_id: str, delta: Delta) -> inference.GenerateResponse:
    usage = None
    if delta.usage is not None:
        usage = inference.Usage(
            prompt_tokens=delta.usage.prompt_tokens,
            completion_tokens=delta.usage.completion_tokens,
            cached_tokens=delta.usage.cached_tokens,
        )
    return inference.GenerateResponse(
        request_id=request_id,
        text=delta.text,
        tokens=[token_to_wire(token) for token in delta.tokens],
        finish_reason=finish_to_wire(delta.finish_reason),
        usage=usage,
    )


async def _abort(context: grpc.aio.ServicerContext, error: KvasirError) -> NoReturn:
    trailers: tuple[tuple[str, str], ...] = ()
    if error.retry_after_s is not None:
        trailers = (("retry-after", f"{error.retry_after_s:.3f}"),)
    await context.abort(grpc.StatusCode[error.code.value], error.message, trailers)
    raise AssertionError("abort() raises")
