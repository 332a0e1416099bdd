from workers.wire import common_pb2 as _common_pb2
from workers.wire import worker_pb2 as _worker_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("pool", "load", "up", "indexed_blocks", "predictions")
    POOL_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    INDEXED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    pool: str
    load: _worker_pb2.LoadReport
    up: bool
    indexed_blocks: int
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    def __init__(self, pool: _Optional[str] = ..., load: _Optional[_Union[_worker_pb2.LoadReport, _Mapping]] = ..., up: _Optional[bool] = ..., indexed_blocks: _Optional[int] = ..., predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("kind", "count", "predicted_s", "actual_s", "error", "bias")
    KIND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_S_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_S_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    count: int
    predicted_s: float
    actual_s: float
    error: float
    bias: float
    def __init__(self, kind: _Optional[str] = ..., count: _Optional[int] = ..., predicted_s: _Optional[float] = ..., actual_s: _Optional[float] = ..., error: _Optional[float] = ..., bias: _Optional[float] = ...) -> None: ...

class ClassStatus(_message.Message):
    __slots__ = ("name", "queued", "admitted", "refused", "good", "ended")
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    GOOD_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    name: str
    queued: int
    admitted: int
    refused: int
    good: int
    ended: int
    def __init__(self, name: _Optional[str] = ..., queued: _Optional[int] = ..., admitted: _Optional[int] = ..., refused: _Optional[int] = ..., good: _Optional[int] = ..., ended: _Optional[int] = ...) -> None: ...

class OtherRouter(_message.Message):
    __slots__ = ("id", "heard_s", "pending_tokens", "kv_tokens", "seqs")
    ID_FIELD_NUMBER: _ClassVar[int]
    HEARD_S_FIELD_NUMBER: _ClassVar[int]
    PENDING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEQS_FIELD_NUMBER: _ClassVar[int]
    id: str
    heard_s: float
    pending_tokens: int
    kv_tokens: int
    seqs: int
    def __init__(self, id: _Optional[str] = ..., heard_s: _Optional[float] = ..., pending_tokens: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., seqs: _Optional[int] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("model", "replicas", "requests_in_flight", "requests_total", "requests_failed", "redis_up", "index_blocks", "classes", "requests", "router", "others")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FAILED_FIELD_NUMBER: _ClassVar[int]
    REDIS_UP_FIELD_NUMBER: _ClassVar[int]
    INDEX_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    model: str
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaStatus]
    requests_in_flight: int
    requests_total: int
    requests_failed: int
    redis_up: bool
    index_blocks: int
    classes: _containers.RepeatedCompositeFieldContainer[ClassStatus]
    requests: _containers.RepeatedCompositeFieldContainer[Prediction]
    router: str
    others: _containers.RepeatedCompositeFieldContainer[OtherRouter]
    def __init__(self, model: _Optional[str] = ..., replicas: _Optional[_Iterable[_Union[ReplicaStatus, _Mapping]]] = ..., requests_in_flight: _Optional[int] = ..., requests_total: _Optional[int] = ..., requests_failed: _Optional[int] = ..., redis_up: _Optional[bool] = ..., index_blocks: _Optional[int] = ..., classes: _Optional[_Iterable[_Union[ClassStatus, _Mapping]]] = ..., requests: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., router: _Optional[str] = ..., others: _Optional[_Iterable[_Union[OtherRouter, _Mapping]]] = ...) -> None: ...

class ReplicaTickets(_message.Message):
    __slots__ = ("replica", "held", "error")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    replica: str
    held: _worker_pb2.TicketsResponse
    error: str
    def __init__(self, replica: _Optional[str] = ..., held: _Optional[_Union[_worker_pb2.TicketsResponse, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...

class ClusterTickets(_message.Message):
    __slots__ = ("replicas",)
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaTickets]
    def __init__(self, replicas: _Optional[_Iterable[_Union[ReplicaTickets, _Mapping]]] = ...) -> None: ...

class FsckRequest(_message.Message):
    __slots__ = ("repair",)
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    repair: bool
    def __init__(self, repair: _Optional[bool] = ...) -> None: ...

class FsckReplica(_message.Message):
    __slots__ = ("replica", "incarnation", "event_seq", "table_blocks", "log_blocks", "mirror_blocks", "log_missing", "log_extra", "mirror_missing", "mirror_extra", "faults", "mended")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EVENT_SEQ_FIELD_NUMBER: _ClassVar[int]
    TABLE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LOG_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MIRROR_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LOG_MISSING_FIELD_NUMBER: _ClassVar[int]
    LOG_EXTRA_FIELD_NUMBER: _ClassVar[int]
    MIRROR_MISSING_FIELD_NUMBER: _ClassVar[int]
    MIRROR_EXTRA_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    MENDED_FIELD_NUMBER: _ClassVar[int]
    replica: str
    incarnation: str
    event_seq: int
    table_blocks: int
    log_blocks: int
    mirror_blocks: int
    log_missing: int
    log_extra: int
    mirror_missing: int
    mirror_extra: int
    faults: _containers.RepeatedScalarFieldContainer[str]
    mended: bool
    def __init__(self, replica: _Optional[str] = ..., incarnation: _Optional[str] = ..., event_seq: _Optional[int] = ..., table_blocks: _Optional[int] = ..., log_blocks: _Optional[int] = ..., mirror_blocks: _Optional[int] = ..., log_missing: _Optional[int] = ..., log_extra: _Optional[int] = ..., mirror_missing: _Optional[int] = ..., mirror_extra: _Optional[int] = ..., faults: _Optional[_Iterable[str]] = ..., mended: _Optional[bool] = ...) -> None: ...

class FsckResponse(_message.Message):
    __slots__ = ("replicas", "orphans", "redis_up")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    ORPHANS_FIELD_NUMBER: _ClassVar[int]
    REDIS_UP_FIELD_NUMBER: _ClassVar[int]
    replicas: _containers.RepeatedCompositeFieldContainer[FsckReplica]
    orphans: _containers.RepeatedScalarFieldContainer[str]
    redis_up: bool
    def __init__(self, replicas: _Optional[_Iterable[_Union[FsckReplica, _Mapping]]] = ..., orphans: _Optional[_Iterable[str]] = ..., redis_up: _Optional[bool] = ...) -> None: ...

class SetSloRequest(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class SetSloResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExplainRequestRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ExplainRequestResponse(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[Explanation]
    def __init__(self, requests: _Optional[_Iterable[_Union[Explanation, _Mapping]]] = ...) -> None: ...

class RecentRequestsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class RecentRequestsResponse(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RequestSummary]
    def __init__(self, requests: _Optional[_Iterable[_Union[RequestSummary, _Mapping]]] = ...) -> None: ...

class RequestSummary(_message.Message):
    __slots__ = ("id", "also", "worker_id", "age_s", "slo_class", "tenant", "prompt_tokens", "output_tokens", "outcome", "error", "ttft_s", "first_gap_s", "total_s", "prefill", "decode")
    ID_FIELD_NUMBER: _ClassVar[int]
    ALSO_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_GAP_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    id: str
    also: _containers.RepeatedScalarFieldContainer[str]
    worker_id: str
    age_s: float
    slo_class: str
    tenant: str
    prompt_tokens: int
    output_tokens: int
    outcome: str
    error: str
    ttft_s: float
    first_gap_s: float
    total_s: float
    prefill: str
    decode: str
    def __init__(self, id: _Optional[str] = ..., also: _Optional[_Iterable[str]] = ..., worker_id: _Optional[str] = ..., age_s: _Optional[float] = ..., slo_class: _Optional[str] = ..., tenant: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., outcome: _Optional[str] = ..., error: _Optional[str] = ..., ttft_s: _Optional[float] = ..., first_gap_s: _Optional[float] = ..., total_s: _Optional[float] = ..., prefill: _Optional[str] = ..., decode: _Optional[str] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("summary", "choices", "ttft", "first_gap", "compared", "story", "left_out")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    TTFT_FIELD_NUMBER: _ClassVar[int]
    FIRST_GAP_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    STORY_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    summary: RequestSummary
    choices: _containers.RepeatedCompositeFieldContainer[Choice]
    ttft: Waterfall
    first_gap: Waterfall
    compared: _containers.RepeatedCompositeFieldContainer[Compared]
    story: _containers.RepeatedCompositeFieldContainer[StoryLine]
    left_out: int
    def __init__(self, summary: _Optional[_Union[RequestSummary, _Mapping]] = ..., choices: _Optional[_Iterable[_Union[Choice, _Mapping]]] = ..., ttft: _Optional[_Union[Waterfall, _Mapping]] = ..., first_gap: _Optional[_Union[Waterfall, _Mapping]] = ..., compared: _Optional[_Iterable[_Union[Compared, _Mapping]]] = ..., story: _Optional[_Iterable[_Union[StoryLine, _Mapping]]] = ..., left_out: _Optional[int] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("at_s", "phase", "replica", "candidates", "refused", "timing", "moving", "taken", "otherwise")
    AT_S_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    MOVING_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    OTHERWISE_FIELD_NUMBER: _ClassVar[int]
    at_s: float
    phase: str
    replica: str
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    refused: _containers.RepeatedCompositeFieldContainer[RefusedReplica]
    timing: Timing
    moving: bool
    taken: int
    otherwise: int
    def __init__(self, at_s: _Optional[float] = ..., phase: _Optional[str] = ..., replica: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[RefusedReplica, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., moving: _Optional[bool] = ..., taken: _Optional[int] = ..., otherwise: _Optional[int] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("replica", "wait_s", "transfer_s", "work_s", "cached_tokens", "cost_s", "way")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    WORK_S_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COST_S_FIELD_NUMBER: _ClassVar[int]
    WAY_FIELD_NUMBER: _ClassVar[int]
    replica: str
    wait_s: float
    transfer_s: float
    work_s: float
    cached_tokens: int
    cost_s: float
    way: Way
    def __init__(self, replica: _Optional[str] = ..., wait_s: _Optional[float] = ..., transfer_s: _Optional[float] = ..., work_s: _Optional[float] = ..., cached_tokens: _Optional[int] = ..., cost_s: _Optional[float] = ..., way: _Optional[_Union[Way, _Mapping]] = ...) -> None: ...

class Way(_message.Message):
    __slots__ = ("alone", "decode", "gap_s", "itl_s", "after_s")
    ALONE_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    GAP_S_FIELD_NUMBER: _ClassVar[int]
    ITL_S_FIELD_NUMBER: _ClassVar[int]
    AFTER_S_FIELD_NUMBER: _ClassVar[int]
    alone: bool
    decode: str
    gap_s: float
    itl_s: float
    after_s: float
    def __init__(self, alone: _Optional[bool] = ..., decode: _Optional[str] = ..., gap_s: _Optional[float] = ..., itl_s: _Optional[float] = ..., after_s: _Optional[float] = ...) -> None: ...

class RefusedReplica(_message.Message):
    __slots__ = ("replica", "why")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    replica: str
    why: str
    def __init__(self, replica: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("timing", "transfer_s", "prefill_left_s", "gain_s", "wanted_tokens", "free_tokens", "capacity_tokens")
    TIMING_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    GAIN_S_FIELD_NUMBER: _ClassVar[int]
    WANTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    timing: str
    transfer_s: float
    prefill_left_s: float
    gain_s: float
    wanted_tokens: int
    free_tokens: int
    capacity_tokens: int
    def __init__(self, timing: _Optional[str] = ..., transfer_s: _Optional[float] = ..., prefill_left_s: _Optional[float] = ..., gain_s: _Optional[float] = ..., wanted_tokens: _Optional[int] = ..., free_tokens: _Optional[int] = ..., capacity_tokens: _Optional[int] = ...) -> None: ...

class Waterfall(_message.Message):
    __slots__ = ("total_s", "parts")
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    total_s: float
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, total_s: _Optional[float] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("name", "seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    seconds: float
    def __init__(self, name: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class Compared(_message.Message):
    __slots__ = ("name", "unit", "predicted", "actual")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    unit: str
    predicted: float
    actual: float
    def __init__(self, name: _Optional[str] = ..., unit: _Optional[str] = ..., predicted: _Optional[float] = ..., actual: _Optional[float] = ...) -> None: ...

class StoryLine(_message.Message):
    __slots__ = ("at_s", "what")
    AT_S_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    at_s: float
    what: str
    def __init__(self, at_s: _Optional[float] = ..., what: _Optional[str] = ...) -> None: ...

class RecordRequest(_message.Message):
    __slots__ = ("salt", "steps", "no_blocks", "arrivals")
    SALT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    NO_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ARRIVALS_FIELD_NUMBER: _ClassVar[int]
    salt: bytes
    steps: bool
    no_blocks: bool
    arrivals: bool
    def __init__(self, salt: _Optional[bytes] = ..., steps: _Optional[bool] = ..., no_blocks: _Optional[bool] = ..., arrivals: _Optional[bool] = ...) -> None: ...

class RecordedBatch(_message.Message):
    __slots__ = ("requests", "steps", "lost", "arrivals")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    ARRIVALS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RecordedRequest]
    steps: _containers.RepeatedCompositeFieldContainer[RecordedStep]
    lost: int
    arrivals: _containers.RepeatedCompositeFieldContainer[RecordedArrival]
    def __init__(self, requests: _Optional[_Iterable[_Union[RecordedRequest, _Mapping]]] = ..., steps: _Optional[_Iterable[_Union[RecordedStep, _Mapping]]] = ..., lost: _Optional[int] = ..., arrivals: _Optional[_Iterable[_Union[RecordedArrival, _Mapping]]] = ...) -> None: ...

class RecordedArrival(_message.Message):
    __slots__ = ("slo_class", "prompt_tokens")
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    slo_class: str
    prompt_tokens: int
    def __init__(self, slo_class: _Optional[str] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...

class RecordedRequest(_message.Message):
    __slots__ = ("arrived", "prompt_tokens", "output_tokens", "max_tokens", "block_size", "hashes", "slo_class", "tenant", "cached_tokens", "let_in", "ttft_s", "itl_s", "outcome")
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    SLO_CLASS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LET_IN_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    ITL_S_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    arrived: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int
    block_size: int
    hashes: _containers.RepeatedScalarFieldContainer[int]
    slo_class: str
    tenant: str
    cached_tokens: int
    let_in: bool
    ttft_s: float
    itl_s: float
    outcome: str
    def __init__(self, arrived: _Optional[float] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., block_size: _Optional[int] = ..., hashes: _Optional[_Iterable[int]] = ..., slo_class: _Optional[str] = ..., tenant: _Optional[str] = ..., cached_tokens: _Optional[int] = ..., let_in: _Optional[bool] = ..., ttft_s: _Optional[float] = ..., itl_s: _Optional[float] = ..., outcome: _Optional[str] = ...) -> None: ...

class RecordedStep(_message.Message):
    __slots__ = ("reported", "replica", "role", "hardware", "tensor_ranks", "expert_ranks", "kv_abi", "step")
    REPORTED_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_RANKS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_RANKS_FIELD_NUMBER: _ClassVar[int]
    KV_ABI_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    reported: float
    replica: str
    role: _common_pb2.Role
    hardware: str
    tensor_ranks: int
    expert_ranks: int
    kv_abi: str
    step: _worker_pb2.StepReport
    def __init__(self, reported: _Optional[float] = ..., replica: _Optional[str] = ..., role: _Optional[_Union[_common_pb2.Role, str]] = ..., hardware: _Optional[str] = ..., tensor_ranks: _Optional[int] = ..., expert_ranks: _Optional[int] = ..., kv_abi: _Optional[str] = ..., step: _Optional[_Union[_worker_pb2.StepReport, _Mapping]] = ...) -> None: ...

class SetReplicaRoleRequest(_message.Message):
    __slots__ = ("replica", "role")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    replica: str
    role: _common_pb2.Role
    def __init__(self, replica: _Optional[str] = ..., role: _Optional[_Union[_common_pb2.Role, str]] = ...) -> None: ...

class SetReplicaRoleResponse(_message.Message):
    __slots__ = ("was",)
    WAS_FIELD_NUMBER: _ClassVar[int]
    was: _common_pb2.Role
    def __init__(self, was: _Optional[_Union[_common_pb2.Role, str]] = ...) -> None: ...

class ExplainScaleRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExplainScaleResponse(_message.Message):
    __slots__ = ("json", "age_s", "by_hand")
    class ByHandEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: ScaledByHand
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[ScaledByHand, _Mapping]] = ...) -> None: ...
    JSON_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    BY_HAND_FIELD_NUMBER: _ClassVar[int]
    json: str
    age_s: float
    by_hand: _containers.MessageMap[str, ScaledByHand]
    def __init__(self, json: _Optional[str] = ..., age_s: _Optional[float] = ..., by_hand: _Optional[_Mapping[str, ScaledByHand]] = ...) -> None: ...

class ScaledByHand(_message.Message):
    __slots__ = ("replicas", "at")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    replicas: int
    at: float
    def __init__(self, replicas: _Optional[int] = ..., at: _Optional[float] = ...) -> None: ...
