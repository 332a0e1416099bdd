"""The seam between scheduling and computing: who runs a batch and who owns the pages."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from workers.core.batch import Batch, StepOutput


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the rest needs to know of a model; `kv_abi` is the identity of its KV. `shards`: equal
    parts of the blocks; those of a sequence must all lie in one."""

    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]
    kv_abi: str
    kv_bytes_per_token: int
    shards: int = 1


class PageStore(Protocol):
    """The pages behind block ids 0..num_blocks-1. Staging is contiguous bytes, block after block,
    in whatever the store and its transports share: a torch uint8 tensor, or a simulated memoryview.
    Copies move the part of some `heads`, of those that the pages have; all by default.
    """

    num_blocks: int
    block_bytes: int

    def new_staging(self, num_bytes: int) -> Any: ...

    def gather(self, blocks: Sequence[int], staging: Any, heads: slice | None = None) -> None:
        """Copy pages out, into the first bytes of staging."""

    def scatter(self, staging: Any, blocks: Sequence[int], heads: slice | None = None) -> None:
        """Copy pages in. The caller owns `blocks` alone: nobody reads them before it returns."""

    def to_bytes(self, staging: Any, num_bytes: int) -> bytes:
        """The first bytes of staging, to be sent inside a message."""

    def from_bytes(self, data: bytes) -> Any:
        """Staging that holds `data`."""


class Runner(Protocol):
    """Runs batches on one replica, one after another. Pages are written before a batch is over."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def pages(self) -> PageStore: ...

    def execute(self, batch: Batch) -> Awaitable[StepOutput]:
        """Reads the sequences now. Another batch may be given before this one is over: a chunk
        that starts where the known tokens of its sequence end continues with the token that the
        batch before samples. A request without usable logits gets a KvasirError in place of its
        token; one that is raised has failed the whole batch."""

    async def close(self) -> None: ...
