"""The rows of `kvasir bench transfer`: which there are, and that each stands beside its limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from workers.bench import handoff, reshard, transfer

KIB = 1 << 10


async def test_bandwidth_rows_stand_beside_the_limits_of_the_same_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer, "ROUNDS", 1)
    monkeypatch.setattr(transfer, "ROUND_BYTES", 2 << 20)
    rows = {row.name: row async for row in transfer.bandwidths([64 * KIB, 1024 * KIB])}
    for size in ("64KiB", "1MiB"):
        for name, limit in (("gloo", "socket"), ("grpc", "socket"), ("shm", "memcpy")):
            row, beside = rows[f"{name}/{size}"], rows[f"{limit}/{size}"]
            assert row.value > 0 and row.unit == "GB/s"
            assert row.limit == beside.value
            assert row.ratio == pytest.approx(row.value / beside.value)
    assert len(rows) == 10


def test_resharding_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reshard, "BYTES", 1 << 20)
    rows = list(reshard.resharding())
    assert [row.name for row in rows] == ["reshard/gather", "reshard/scatter"]
    assert all(row.value > 0 and row.limit for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_rows_of_real_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(handoff, "TIMES", 3)
    monkeypatch.setattr(handoff, "OVERLAPS", 1)
    monkeypatch.setattr(handoff, "VOCABULARY", 200)
    model = make_checkpoint(tmp_path / "model", "llama", max_position_embeddings=4096)
    handoffs = handoff.Handoffs(tmp_path, str(model))
    names = []
    for part in (handoffs.protocol(1e9), handoffs.overlap(1024), handoffs.deaths()):
        async for row in part:
            assert row.name.startswith("overlap/hidden") or row.value > 0
            names.append(row.name)
    assert names == [
        *("ticket/first_token/inline", "ticket/overhead"),
        *("overlap/late", "overlap/late/rate", "overlap/early/exposed", "overlap/hidden"),
        *("reclaim/cancelled", "rebind/decode_killed", "reclaim/decode_killed"),
        *("notice/prefill_stopped", "notice/prefill_killed", "reclaim/prefill_killed"),
        "restart/pair",
    ]
