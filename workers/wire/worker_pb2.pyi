from workers.wire import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SequenceSpec(_message.Message):
    __slots__ = ("request_id", "attempt", "token_ids", "prompt_len", "sampling", "cache_salt", "traceparent", "tracestate")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LEN_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TRACESTATE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt_len: int
    sampling: _common_pb2.SamplingParams
    cache_salt: str
    traceparent: str
    tracestate: str
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., prompt_len: _Optional[int] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., cache_salt: _Optional[str] = ..., traceparent: _Optional[str] = ..., tracestate: _Optional[str] = ...) -> None: ...

class PrefillRequest(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: SequenceSpec
    def __init__(self, sequence: _Optional[_Union[SequenceSpec, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("ticket", "cached_tokens")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ticket: _common_pb2.Ticket
    cached_tokens: int
    def __init__(self, ticket: _Optional[_Union[_common_pb2.Ticket, _Mapping]] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("computed_tokens",)
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    computed_tokens: int
    def __init__(self, computed_tokens: _Optional[int] = ...) -> None: ...

class FirstToken(_message.Message):
    __slots__ = ("token", "finish_reason", "queue_s", "prefill_s")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    token: _common_pb2.Token
    finish_reason: _common_pb2.FinishReason
    queue_s: float
    prefill_s: float
    def __init__(self, token: _Optional[_Union[_common_pb2.Token, _Mapping]] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., queue_s: _Optional[float] = ..., prefill_s: _Optional[float] = ...) -> None: ...

class PrefillDone(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PrefillEvent(_message.Message):
    __slots__ = ("attempt", "opened", "progress", "first_token", "done")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    opened: Opened
    progress: Progress
    first_token: FirstToken
    done: PrefillDone
    def __init__(self, attempt: _Optional[int] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., first_token: _Optional[_Union[FirstToken, _Mapping]] = ..., done: _Optional[_Union[PrefillDone, _Mapping]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("sequence", "ticket", "epoch")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    sequence: SequenceSpec
    ticket: _common_pb2.Ticket
    epoch: int
    def __init__(self, sequence: _Optional[_Union[SequenceSpec, _Mapping]] = ..., ticket: _Optional[_Union[_common_pb2.Ticket, _Mapping]] = ..., epoch: _Optional[int] = ...) -> None: ...

class DecodeCancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DecodeCall(_message.Message):
    __slots__ = ("call", "start", "cancel", "steps_read")
    CALL_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    STEPS_READ_FIELD_NUMBER: _ClassVar[int]
    call: int
    start: DecodeRequest
    cancel: DecodeCancel
    steps_read: int
    def __init__(self, call: _Optional[int] = ..., start: _Optional[_Union[DecodeRequest, _Mapping]] = ..., cancel: _Optional[_Union[DecodeCancel, _Mapping]] = ..., steps_read: _Optional[int] = ...) -> None: ...

class DecodeStep(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[DecodeEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[DecodeEvent, _Mapping]]] = ...) -> None: ...

class Admitted(_message.Message):
    __slots__ = ("cached_tokens", "fetched_bytes", "admit_wait_s", "transfer_s", "transport", "refetched_blocks", "exposed_s")
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADMIT_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    REFETCHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_S_FIELD_NUMBER: _ClassVar[int]
    cached_tokens: int
    fetched_bytes: int
    admit_wait_s: float
    transfer_s: float
    transport: str
    refetched_blocks: int
    exposed_s: float
    def __init__(self, cached_tokens: _Optional[int] = ..., fetched_bytes: _Optional[int] = ..., admit_wait_s: _Optional[float] = ..., transfer_s: _Optional[float] = ..., transport: _Optional[str] = ..., refetched_blocks: _Optional[int] = ..., exposed_s: _Optional[float] = ...) -> None: ...

class Prefilled(_message.Message):
    __slots__ = ("prefill_s",)
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    prefill_s: float
    def __init__(self, prefill_s: _Optional[float] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("tokens", "finish_reason")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[_common_pb2.Token]
    finish_reason: _common_pb2.FinishReason
    def __init__(self, tokens: _Optional[_Iterable[_Union[_common_pb2.Token, _Mapping]]] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ...) -> None: ...

class Moving(_message.Message):
    __slots__ = ("ticket",)
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ticket: _common_pb2.Ticket
    def __init__(self, ticket: _Optional[_Union[_common_pb2.Ticket, _Mapping]] = ...) -> None: ...

class Moved(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class End(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class DecodeEvent(_message.Message):
    __slots__ = ("attempt", "admitted", "tokens", "progress", "prefilled", "moving", "moved", "end", "call")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    MOVING_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    admitted: Admitted
    tokens: Tokens
    progress: Progress
    prefilled: Prefilled
    moving: Moving
    moved: Moved
    end: End
    call: int
    def __init__(self, attempt: _Optional[int] = ..., admitted: _Optional[_Union[Admitted, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., prefilled: _Optional[_Union[Prefilled, _Mapping]] = ..., moving: _Optional[_Union[Moving, _Mapping]] = ..., moved: _Optional[_Union[Moved, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., call: _Optional[int] = ...) -> None: ...

class Redeem(_message.Message):
    __slots__ = ("ticket_id", "epoch", "kv_abi", "first_block", "receiver", "generation", "known_tokens")
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KV_ABI_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    KNOWN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ticket_id: str
    epoch: int
    kv_abi: str
    first_block: int
    receiver: str
    generation: int
    known_tokens: int
    def __init__(self, ticket_id: _Optional[str] = ..., epoch: _Optional[int] = ..., kv_abi: _Optional[str] = ..., first_block: _Optional[int] = ..., receiver: _Optional[str] = ..., generation: _Optional[int] = ..., known_tokens: _Optional[int] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("pair_seq",)
    PAIR_SEQ_FIELD_NUMBER: _ClassVar[int]
    pair_seq: int
    def __init__(self, pair_seq: _Optional[int] = ...) -> None: ...

class Taken(_message.Message):
    __slots__ = ("pair_seq",)
    PAIR_SEQ_FIELD_NUMBER: _ClassVar[int]
    pair_seq: int
    def __init__(self, pair_seq: _Optional[int] = ...) -> None: ...

class Again(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, blocks: _Optional[_Iterable[int]] = ...) -> None: ...

class Received(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("redeem", "ready", "received", "taken", "again", "leave")
    REDEEM_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    redeem: Redeem
    ready: Ready
    received: Received
    taken: Taken
    again: Again
    leave: Leave
    def __init__(self, redeem: _Optional[_Union[Redeem, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., received: _Optional[_Union[Received, _Mapping]] = ..., taken: _Optional[_Union[Taken, _Mapping]] = ..., again: _Optional[_Union[Again, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Offer(_message.Message):
    __slots__ = ("epoch", "first_block", "num_blocks", "num_bytes", "generation", "pair_seq", "crc32", "slot")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PAIR_SEQ_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    first_block: int
    num_blocks: int
    num_bytes: int
    generation: int
    pair_seq: int
    crc32: _containers.RepeatedScalarFieldContainer[int]
    slot: int
    def __init__(self, epoch: _Optional[int] = ..., first_block: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_bytes: _Optional[int] = ..., generation: _Optional[int] = ..., pair_seq: _Optional[int] = ..., crc32: _Optional[_Iterable[int]] = ..., slot: _Optional[int] = ...) -> None: ...

class Go(_message.Message):
    __slots__ = ("pair_seq",)
    PAIR_SEQ_FIELD_NUMBER: _ClassVar[int]
    pair_seq: int
    def __init__(self, pair_seq: _Optional[int] = ...) -> None: ...

class InlineBlocks(_message.Message):
    __slots__ = ("first_block", "num_blocks", "data", "crc32")
    FIRST_BLOCK_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    first_block: int
    num_blocks: int
    data: bytes
    crc32: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, first_block: _Optional[int] = ..., num_blocks: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32: _Optional[_Iterable[int]] = ...) -> None: ...

class Complete(_message.Message):
    __slots__ = ("num_tokens", "token_ids")
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    num_tokens: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, num_tokens: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Redeemed(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("offer", "inline", "redeemed", "heartbeat", "go", "complete")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    REDEEMED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    GO_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    offer: Offer
    inline: InlineBlocks
    redeemed: Redeemed
    heartbeat: Heartbeat
    go: Go
    complete: Complete
    def __init__(self, offer: _Optional[_Union[Offer, _Mapping]] = ..., inline: _Optional[_Union[InlineBlocks, _Mapping]] = ..., redeemed: _Optional[_Union[Redeemed, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., go: _Optional[_Union[Go, _Mapping]] = ..., complete: _Optional[_Union[Complete, _Mapping]] = ...) -> None: ...

class ConnectRequest(_message.Message):
    __slots__ = ("receiver", "generation", "kv_abi", "backend", "rendezvous", "slot_bytes", "sender_incarnation", "slots", "sender_shard", "receiver_shard")
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    KV_ABI_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    RENDEZVOUS_FIELD_NUMBER: _ClassVar[int]
    SLOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENDER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SENDER_SHARD_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_SHARD_FIELD_NUMBER: _ClassVar[int]
    receiver: _common_pb2.ReplicaRef
    generation: int
    kv_abi: str
    backend: str
    rendezvous: _containers.RepeatedScalarFieldContainer[bytes]
    slot_bytes: int
    sender_incarnation: str
    slots: int
    sender_shard: int
    receiver_shard: int
    def __init__(self, receiver: _Optional[_Union[_common_pb2.ReplicaRef, _Mapping]] = ..., generation: _Optional[int] = ..., kv_abi: _Optional[str] = ..., backend: _Optional[str] = ..., rendezvous: _Optional[_Iterable[bytes]] = ..., slot_bytes: _Optional[int] = ..., sender_incarnation: _Optional[str] = ..., slots: _Optional[int] = ..., sender_shard: _Optional[int] = ..., receiver_shard: _Optional[int] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("rendezvous", "slot_bytes", "slots")
    RENDEZVOUS_FIELD_NUMBER: _ClassVar[int]
    SLOT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    rendezvous: _containers.RepeatedScalarFieldContainer[bytes]
    slot_bytes: int
    slots: int
    def __init__(self, rendezvous: _Optional[_Iterable[bytes]] = ..., slot_bytes: _Optional[int] = ..., slots: _Optional[int] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("ticket_ids",)
    TICKET_IDS_FIELD_NUMBER: _ClassVar[int]
    ticket_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, ticket_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("unknown",)
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    unknown: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, unknown: _Optional[_Iterable[str]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("ticket_id", "epoch")
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ticket_id: str
    epoch: int
    def __init__(self, ticket_id: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: bool
    def __init__(self, released: _Optional[bool] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("request_id", "attempt")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MoveRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class MoveResponse(_message.Message):
    __slots__ = ("moving",)
    MOVING_FIELD_NUMBER: _ClassVar[int]
    moving: bool
    def __init__(self, moving: _Optional[bool] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("budget_s",)
    BUDGET_S_FIELD_NUMBER: _ClassVar[int]
    budget_s: float
    def __init__(self, budget_s: _Optional[float] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("left",)
    LEFT_FIELD_NUMBER: _ClassVar[int]
    left: int
    def __init__(self, left: _Optional[int] = ...) -> None: ...

class SetRoleRequest(_message.Message):
    __slots__ = ("role",)
    ROLE_FIELD_NUMBER: _ClassVar[int]
    role: _common_pb2.Role
    def __init__(self, role: _Optional[_Union[_common_pb2.Role, str]] = ...) -> None: ...

class SetRoleResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetLimitsRequest(_message.Message):
    __slots__ = ("max_seqs", "step_tokens")
    MAX_SEQS_FIELD_NUMBER: _ClassVar[int]
    STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_seqs: int
    step_tokens: int
    def __init__(self, max_seqs: _Optional[int] = ..., step_tokens: _Optional[int] = ...) -> None: ...

class SetLimitsResponse(_message.Message):
    __slots__ = ("max_seqs", "step_tokens")
    MAX_SEQS_FIELD_NUMBER: _ClassVar[int]
    STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    max_seqs: int
    step_tokens: int
    def __init__(self, max_seqs: _Optional[int] = ..., step_tokens: _Optional[int] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("interval_s",)
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    interval_s: float
    def __init__(self, interval_s: _Optional[float] = ...) -> None: ...

class StepReport(_message.Message):
    __slots__ = ("prefill_tokens", "prefill_kv", "prefill_pairs", "decode_seqs", "decode_kv", "seconds")
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_KV_FIELD_NUMBER: _ClassVar[int]
    PREFILL_PAIRS_FIELD_NUMBER: _ClassVar[int]
    DECODE_SEQS_FIELD_NUMBER: _ClassVar[int]
    DECODE_KV_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    prefill_tokens: int
    prefill_kv: int
    prefill_pairs: int
    decode_seqs: int
    decode_kv: int
    seconds: float
    def __init__(self, prefill_tokens: _Optional[int] = ..., prefill_kv: _Optional[int] = ..., prefill_pairs: _Optional[int] = ..., decode_seqs: _Optional[int] = ..., decode_kv: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class TransferReport(_message.Message):
    __slots__ = ("sender", "transport", "num_bytes", "seconds")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    sender: str
    transport: str
    num_bytes: int
    seconds: float
    def __init__(self, sender: _Optional[str] = ..., transport: _Optional[str] = ..., num_bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class LoadReport(_message.Message):
    __slots__ = ("replica", "role", "state", "kv_abi", "running", "waiting", "waiting_tokens", "kv_tokens", "blocks_total", "blocks_used", "blocks_cached", "tickets_open", "prefix_hit_tokens", "prefix_query_tokens", "preemptions", "steps", "step_tokens", "kv_bytes_per_token", "transfers", "quarantined", "max_seqs", "most_step_tokens", "seqs_limit", "made_tokens")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    KV_ABI_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_CACHED_FIELD_NUMBER: _ClassVar[int]
    TICKETS_OPEN_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_QUERY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQS_FIELD_NUMBER: _ClassVar[int]
    MOST_STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEQS_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MADE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    replica: _common_pb2.ReplicaRef
    role: _common_pb2.Role
    state: str
    kv_abi: str
    running: int
    waiting: int
    waiting_tokens: int
    kv_tokens: int
    blocks_total: int
    blocks_used: int
    blocks_cached: int
    tickets_open: int
    prefix_hit_tokens: int
    prefix_query_tokens: int
    preemptions: int
    steps: _containers.RepeatedCompositeFieldContainer[StepReport]
    step_tokens: int
    kv_bytes_per_token: int
    transfers: _containers.RepeatedCompositeFieldContainer[TransferReport]
    quarantined: _containers.RepeatedScalarFieldContainer[str]
    max_seqs: int
    most_step_tokens: int
    seqs_limit: int
    made_tokens: int
    def __init__(self, replica: _Optional[_Union[_common_pb2.ReplicaRef, _Mapping]] = ..., role: _Optional[_Union[_common_pb2.Role, str]] = ..., state: _Optional[str] = ..., kv_abi: _Optional[str] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., waiting_tokens: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., blocks_total: _Optional[int] = ..., blocks_used: _Optional[int] = ..., blocks_cached: _Optional[int] = ..., tickets_open: _Optional[int] = ..., prefix_hit_tokens: _Optional[int] = ..., prefix_query_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[StepReport, _Mapping]]] = ..., step_tokens: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., transfers: _Optional[_Iterable[_Union[TransferReport, _Mapping]]] = ..., quarantined: _Optional[_Iterable[str]] = ..., max_seqs: _Optional[int] = ..., most_step_tokens: _Optional[int] = ..., seqs_limit: _Optional[int] = ..., made_tokens: _Optional[int] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SnapshotResponse(_message.Message):
    __slots__ = ("incarnation", "event_seq", "block_ids")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EVENT_SEQ_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    event_seq: int
    block_ids: bytes
    def __init__(self, incarnation: _Optional[str] = ..., event_seq: _Optional[int] = ..., block_ids: _Optional[bytes] = ...) -> None: ...

class TicketsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TicketInfo(_message.Message):
    __slots__ = ("id", "request_id", "state", "epoch", "num_blocks", "age_s", "lease_left_s", "story")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    LEASE_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    STORY_FIELD_NUMBER: _ClassVar[int]
    id: str
    request_id: str
    state: str
    epoch: int
    num_blocks: int
    age_s: float
    lease_left_s: float
    story: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., request_id: _Optional[str] = ..., state: _Optional[str] = ..., epoch: _Optional[int] = ..., num_blocks: _Optional[int] = ..., age_s: _Optional[float] = ..., lease_left_s: _Optional[float] = ..., story: _Optional[_Iterable[str]] = ...) -> None: ...

class PairInfo(_message.Message):
    __slots__ = ("peer", "sending", "transport", "generation", "lanes", "staging_bytes", "threads", "fds", "offers_under_way", "chunks", "num_bytes", "failed", "failures", "quarantine_left_s")
    PEER_FIELD_NUMBER: _ClassVar[int]
    SENDING_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    STAGING_BYTES_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    FDS_FIELD_NUMBER: _ClassVar[int]
    OFFERS_UNDER_WAY_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    QUARANTINE_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    peer: str
    sending: bool
    transport: str
    generation: int
    lanes: int
    staging_bytes: int
    threads: int
    fds: int
    offers_under_way: int
    chunks: int
    num_bytes: int
    failed: str
    failures: int
    quarantine_left_s: float
    def __init__(self, peer: _Optional[str] = ..., sending: _Optional[bool] = ..., transport: _Optional[str] = ..., generation: _Optional[int] = ..., lanes: _Optional[int] = ..., staging_bytes: _Optional[int] = ..., threads: _Optional[int] = ..., fds: _Optional[int] = ..., offers_under_way: _Optional[int] = ..., chunks: _Optional[int] = ..., num_bytes: _Optional[int] = ..., failed: _Optional[str] = ..., failures: _Optional[int] = ..., quarantine_left_s: _Optional[float] = ...) -> None: ...

class TicketsResponse(_message.Message):
    __slots__ = ("tickets", "pairs")
    TICKETS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    tickets: _containers.RepeatedCompositeFieldContainer[TicketInfo]
    pairs: _containers.RepeatedCompositeFieldContainer[PairInfo]
    def __init__(self, tickets: _Optional[_Iterable[_Union[TicketInfo, _Mapping]]] = ..., pairs: _Optional[_Iterable[_Union[PairInfo, _Mapping]]] = ...) -> None: ...
