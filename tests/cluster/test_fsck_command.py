"""What `kvasir fsck` prints, and when it calls a cluster sound."""

from __future__ import annotations

from rich.console import Console

from cluster.commands.fsck import agrees, fsck_table, remarks
from workers.wire import admin_pb2 as admin

SOUND = admin.FsckReplica(replica="decode-0", event_seq=9, table_blocks=4, mirror_blocks=4)
LOST = admin.FsckReplica(replica="prefill-0", table_blocks=4, log_missing=1)
MENDED = admin.FsckReplica(replica="prefill-1", mirror_extra=3, mended=True)
SILENT = admin.FsckReplica(replica="prefill-2", faults=["worker: no answer"])


def answer(*replicas: admin.FsckReplica, **fields) -> admin.FsckResponse:
    return admin.FsckResponse(replicas=replicas, **{"redis_up": True} | fields)


def test_what_differs_and_was_not_mended_is_a_failure() -> None:
    assert agrees(answer(SOUND), repair=False)
    assert agrees(answer(SOUND, MENDED), repair=True)
    assert not agrees(answer(SOUND, LOST), repair=True)
    assert not agrees(answer(SILENT), repair=False)
    assert not agrees(answer(SOUND, redis_up=False), repair=False)
    assert not agrees(answer(SOUND, orphans=["gone"]), repair=False)
    assert agrees(answer(SOUND, orphans=["gone"]), repair=True)


def test_the_table_has_a_verdict_for_each_replica() -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(fsck_table("127.0.0.1:9000", answer(SOUND, LOST, MENDED)))
    lines = [line.split() for line in capture.get().splitlines() if line.strip()]
    assert {line[0]: line[-1] for line in lines if "-" in line[0] and len(line) > 5} == {
        "decode-0": "ok", "prefill-0": "differs", "prefill-1": "mended",
    }  # fmt: skip


def test_remarks_say_why() -> None:
    told = remarks(answer(SILENT, orphans=["gone"], redis_up=False), repair=False)
    assert told == [
        "prefill-2: worker: no answer",
        "gone: Redis has blocks of it, nobody knows it",
        "Redis is away",
    ]
