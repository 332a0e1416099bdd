from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RouterNews(_message.Message):
    __slots__ = ("router", "number", "whole", "leaving", "held", "expected")
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    router: str
    number: int
    whole: bool
    leaving: bool
    held: _containers.RepeatedCompositeFieldContainer[HeldLoad]
    expected: _containers.RepeatedCompositeFieldContainer[ExpectedBlocks]
    def __init__(self, router: _Optional[str] = ..., number: _Optional[int] = ..., whole: _Optional[bool] = ..., leaving: _Optional[bool] = ..., held: _Optional[_Iterable[_Union[HeldLoad, _Mapping]]] = ..., expected: _Optional[_Iterable[_Union[ExpectedBlocks, _Mapping]]] = ...) -> None: ...

class HeldLoad(_message.Message):
    __slots__ = ("replica", "incarnation", "pending_tokens", "kv_tokens", "seqs")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    PENDING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEQS_FIELD_NUMBER: _ClassVar[int]
    replica: str
    incarnation: str
    pending_tokens: int
    kv_tokens: int
    seqs: int
    def __init__(self, replica: _Optional[str] = ..., incarnation: _Optional[str] = ..., pending_tokens: _Optional[int] = ..., kv_tokens: _Optional[int] = ..., seqs: _Optional[int] = ...) -> None: ...

class ExpectedBlocks(_message.Message):
    __slots__ = ("replica", "block_ids")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    replica: str
    block_ids: bytes
    def __init__(self, replica: _Optional[str] = ..., block_ids: _Optional[bytes] = ...) -> None: ...
