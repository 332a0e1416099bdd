"""`kvasir tickets`: tables for people, JSON for programs."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cluster.admin_client import AdminClient
from cluster.commands.app import app
from workers.wire import admin_pb2 as admin
from workers.wire import worker_pb2 as worker

TICKET = worker.TicketInfo(
    id="4f" * 16,
    request_id="req-1",
    state="fetching",
    epoch=2,
    num_blocks=7,
    age_s=1.25,
    lease_left_s=8.75,
    story=["open", "fetching [epoch 2]"],
)
PAIR = worker.PairInfo(
    peer="decode-9",
    sending=True,
    transport="shm",
    generation=3,
    lanes=2,
    staging_bytes=96 << 20,
    threads=1,
    fds=5,
    chunks=11,
    num_bytes=1536,
    failed="it went silent",
    failures=4,
    quarantine_left_s=2.5,
)
ANSWER = admin.ClusterTickets(
    replicas=[
        admin.ReplicaTickets(
            replica="prefill-0", held=worker.TicketsResponse(tickets=[TICKET], pairs=[PAIR])
        ),
        admin.ReplicaTickets(replica="decode-9", error="UNAVAILABLE: [gone]"),
    ]
)


def say(monkeypatch: pytest.MonkeyPatch, answer: admin.ClusterTickets, *options: str) -> str:
    monkeypatch.setattr(AdminClient, "tickets", lambda client: answer)
    done = CliRunner().invoke(app, ["tickets", *options], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def test_tables_have_all_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    text = say(monkeypatch, ANSWER)
    for words in (
        ("prefill-0", "4f4f4f4f4f4f", "req-1", "fetching", "1.2 s", "8.8 s", "fetching [epoch 2]"),
        (
            "to decode-9",
            "shm",
            "96 MiB",
            "1.5 KiB",
            "failed: it went silent",
            "4 failures in a row",
            "quarantine for 2.5",
        ),
        ("decode-9 does not answer: UNAVAILABLE: [gone]",),
    ):
        (line,) = [line for line in text.splitlines() if words[0] in line and words[-1] in line]
        assert all(word in line for word in words), line


def test_no_ticket_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert say(monkeypatch, admin.ClusterTickets()) == "no ticket is open\n"


def test_json_has_every_field_even_where_it_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = json.loads(say(monkeypatch, ANSWER, "--json"))["replicas"]
    assert set(first["held"]["tickets"][0]) == {field.name for field in TICKET.DESCRIPTOR.fields}
    assert set(first["held"]["pairs"][0]) == {field.name for field in PAIR.DESCRIPTOR.fields}
    assert first["held"]["pairs"][0]["offers_under_way"] == 0
    assert second["error"] == "UNAVAILABLE: [gone]"
