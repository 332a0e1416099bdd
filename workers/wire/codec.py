"""Between core types and messages. Nothing else knows both."""

from __future__ import annotations

from collections.abc import Iterable

from workers.core.batch import SequenceUpdate
from workers.core.request import FinishReason, Request, SampledToken, SamplingParams
from workers.core.roles import RoleName
from workers.core.step_work import MeasuredStep, StepWork
from workers.wire import common_pb2 as common
from workers.wire import worker_pb2 as worker

_TO_WIRE = {
    None: common.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: common.FINISH_REASON_STOP,
    FinishReason.LENGTH: common.FINISH_REASON_LENGTH,
}
_FROM_WIRE = {value: key for key, value in _TO_WIRE.items()}
_ROLES: dict[RoleName, common.Role] = {
    "prefill": common.ROLE_PREFILL,
    "decode": common.ROLE_DECODE,
    "aggregated": common.ROLE_AGGREGATED,
}
_ROLE_NAMES = {value: name for name, value in _ROLES.items()}


def role_to_wire(name: RoleName) -> common.Role:
    return _ROLES[name]


def role_from_wire(role: common.Role) -> RoleName | None:
    """None: unset, or one that is not known here."""
    return _ROLE_NAMES.get(role)


def finish_to_wire(reason: FinishReason | None) -> common.FinishReason:
    return _TO_WIRE[reason]


def finish_from_wire(reason: common.FinishReason) -> FinishReason | None:
    return _FROM_WIRE[reason]


def params_to_wire(params: SamplingParams) -> common.SamplingParams:
    return common.SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=params.seed,
        stop=params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        logprobs=params.logprobs,
        logit_bias=params.logit_bias,
    )


def params_from_wire(message: common.SamplingParams) -> SamplingParams:
    return SamplingParams(
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p or 1.0,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty or 1.0,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        min_tokens=message.min_tokens,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        logit_bias=dict(message.logit_bias),
    )


def token_to_wire(token: SampledToken) -> common.Token:
    if token.logprob is None:
        return common.Token(id=token.id, position=token.position)
    return common.Token(
        id=token.id,
        position=token.position,
        logprob=token.logprob,
        top_logprobs=[
            common.TokenLogprob(token_id=id_, logprob=value) for id_, value in token.top_logprobs
        ],
    )


def update_to_wire(update: SequenceUpdate) -> worker.Tokens:
    """The tokens of a step, and the end if it was the last. The engine runs ahead of a slow reader:
    what the sequence is now is not what it was then, so `update` says whether it had finished."""
    reason = update.sequence.finish_reason if update.finished else None
    return worker.Tokens(
        tokens=[token_to_wire(token) for token in update.tokens],
        finish_reason=finish_to_wire(reason),
    )


def token_from_wire(message: common.Token) -> SampledToken:
    if not message.HasField("logprob"):
        return SampledToken(message.id, message.position)
    return SampledToken(
        id=message.id,
        position=message.position,
        logprob=message.logprob,
        top_logprobs=tuple((top.token_id, top.logprob) for top in message.top_logprobs),
    )


def tokens_from_wire(messages: Iterable[common.Token]) -> tuple[SampledToken, ...]:
    """A simulated worker's are decoded already."""
    return messages if isinstance(messages, tuple) else tuple(map(token_from_wire, messages))


def request_to_wire(request: Request) -> worker.SequenceSpec:
    return worker.SequenceSpec(
        request_id=request.id,
        attempt=request.attempt,
        token_ids=request.token_ids,
        prompt_len=request.prompt_len,
        sampling=params_to_wire(request.params),
        cache_salt=request.cache_salt,
        traceparent=request.traceparent,
        tracestate=request.tracestate,
    )


def request_from_wire(message: worker.SequenceSpec) -> Request:
    return Request(
        id=message.request_id,
        token_ids=tuple(message.token_ids),
        prompt_len=message.prompt_len,
        params=params_from_wire(message.sampling),
        attempt=message.attempt,
        cache_salt=message.cache_salt,
        traceparent=message.traceparent,
        tracestate=message.tracestate,
    )


def step_to_wire(step: MeasuredStep) -> worker.StepReport:
    work, seconds = step
    return worker.StepReport(
        prefill_tokens=work.prefill_tokens,
        prefill_kv=work.prefill_kv,
        prefill_pairs=work.prefill_pairs,
        decode_seqs=work.decode_seqs,
        decode_kv=work.decode_kv,
        seconds=seconds,
    )


def step_from_wire(message: worker.StepReport) -> MeasuredStep:
    work = StepWork(
        message.prefill_tokens,
        message.prefill_kv,
        message.prefill_pairs,
        message.decode_seqs,
        message.decode_kv,
    )
    return MeasuredStep(work, message.seconds)
