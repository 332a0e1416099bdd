"""What it costs to copy a part of the heads, for a receiver of another tensor parallel size, beside
copying whole blocks."""

from __future__ import annotations

from collections.abc import Iterator

from workers.bench.engine import Row
from workers.bench.limits import best_seconds
from workers.bench.pages import Pools, some_blocks
from workers.core.clock import SystemClock

BYTES = 16 << 20  # of whole blocks


def resharding() -> Iterator[Row]:
    """GB/s of one thread, for half of the heads."""
    pages, clock = Pools().of(BYTES), SystemClock()
    staging, blocks = pages.new_staging(BYTES), some_blocks(pages, BYTES)
    half = slice(0, pages.shape.kv_heads // 2)
    for name, copy in (
        ("gather", lambda heads: pages.gather(next(blocks), staging, heads)),
        ("scatter", lambda heads: pages.scatter(staging, next(blocks), heads)),
    ):
        whole = BYTES / best_seconds(lambda copy=copy: copy(None), clock) / 1e9  # type: ignore[misc]
        part = BYTES / 2 / best_seconds(lambda copy=copy: copy(half), clock) / 1e9  # type: ignore[misc]
        yield Row(f"reshard/{name}", part, "GB/s", whole, part / whole)
