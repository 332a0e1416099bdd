"""`kvasir explain`: tables for people, JSON for programs."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cluster.admin_client import AdminClient
from cluster.commands.app import app
from workers.core.errors import RequestNotFound
from workers.wire import admin_pb2 as admin

SUMMARY = admin.RequestSummary(
    id="chatcmpl-1",
    also=["from-me"],
    worker_id="chatcmpl-1-0f",
    age_s=2.5,
    slo_class="standard",
    prompt_tokens=300,
    output_tokens=7,
    outcome="ok",
    ttft_s=0.1,
    first_gap_s=0.02,
    total_s=0.5,
    prefill="prefill-0",
    decode="decode-1",
)
TOLD = admin.Explanation(
    summary=SUMMARY,
    ttft=admin.Waterfall(
        total_s=0.1,
        parts=[
            admin.Part(name="prefill queue", seconds=0.025),
            admin.Part(name="prefill compute", seconds=0.075),
            admin.Part(name="other", seconds=0.0),
        ],
    ),
    choices=[
        admin.Choice(
            at_s=0.03,
            phase="decode",
            replica="decode-1",
            taken=1,
            candidates=[
                admin.Candidate(
                    replica="decode-0", wait_s=0.001, transfer_s=0.002, work_s=0.003, cost_s=0.006
                ),
                admin.Candidate(replica="decode-1", transfer_s=0.0015, cached_tokens=64),
            ],
            refused=[
                admin.RefusedReplica(replica="prefill-0", why="role"),
                admin.RefusedReplica(replica="prefill-1", why="role"),
            ],
            timing=admin.Timing(timing="early", transfer_s=0.02, prefill_left_s=0.1, gain_s=0.018),
        )
    ],
    compared=[
        admin.Compared(name="cached at prefill", unit="tokens", predicted=256, actual=240),
        admin.Compared(name="TTFT", unit="s", predicted=0.09, actual=0.1),
    ],
    story=[admin.StoryLine(at_s=0.03, what="bound to [decode-1]")],
    left_out=3,
)


def say(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    answer = admin.ExplainRequestResponse(requests=[TOLD])
    newest = admin.RecentRequestsResponse(
        requests=[SUMMARY, admin.RequestSummary(id="refused-1", outcome="unavailable")]
    )
    monkeypatch.setattr(AdminClient, "explain_request", lambda client, name: answer)
    monkeypatch.setattr(AdminClient, "recent_requests", lambda client, limit: newest)
    done = CliRunner().invoke(app, ["explain", *arguments], env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    return done.output


def test_a_request_is_told_from_the_whole_to_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = say(monkeypatch, "request", "from-me")
    lines = text.splitlines()
    for words in (
        ("chatcmpl-1", "ok"),
        ("class standard", "300 tokens in, 7 out", "500.0 ms in all"),
        ("also known as", "from-me", "chatcmpl-1-0f"),
        ("TTFT 100.0 ms",),
        ("cached at prefill", "256 tokens", "240 tokens"),
        ("at 30.0 ms: decode on decode-1",),
        ("bind early", "18.0 ms of 20.0 ms"),
        ("not considered (role): prefill-0, prefill-1",),
        ("decode-0", "1.0 ms", "2.0 ms", "3.0 ms", "6.0 ms"),
        ("decode-1", "1.5 ms", "64", "chosen"),
        ("30.0 ms", "bound to [decode-1]"),
        ("3 events more were not kept",),
    ):
        assert any(all(word in line for word in words) for line in lines), (words, text)
    assert "FIRST_GAP" not in text, "there was no second token"


def test_bars_stand_where_their_time_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = say(monkeypatch, "request", "from-me").splitlines()
    (queue,) = [line for line in lines if line.startswith("prefill queue")]
    (compute,) = [line for line in lines if line.startswith("prefill compute ")][:1]
    (other,) = [line for line in lines if line.startswith("other")]
    assert queue.count("█") == 10 and compute.count("█") == 30 and "█" not in other
    assert compute.index("█") == queue.index("█") + 10


def test_json_has_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    (told,) = json.loads(say(monkeypatch, "request", "from-me", "--json"))["requests"]
    assert told["summary"]["id"] == "chatcmpl-1" and told["choices"][0]["moving"] is False
    assert told["ttft"]["parts"][1] == {"name": "prefill compute", "seconds": 0.075}


def test_the_newest_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = say(monkeypatch, "requests").splitlines()
    (served,) = [line for line in lines if "chatcmpl-1" in line]
    for word in ("ok", "prefill-0", "decode-1", "300", "100.0 ms", "20.0 ms", "2.5 s"):
        assert word in served
    (refused,) = [line for line in lines if "refused-1" in line]
    assert "unavailable" in refused and "ms" not in refused
    listed = json.loads(say(monkeypatch, "requests", "--json"))["requests"]
    assert [one["id"] for one in listed] == ["chatcmpl-1", "refused-1"]


def test_an_unknown_id_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(client: AdminClient, name: str) -> admin.ExplainRequestResponse:
        raise RequestNotFound(name)

    monkeypatch.setattr(AdminClient, "explain_request", unknown)
    done = CliRunner().invoke(app, ["explain", "request", "nobody"])
    assert done.exit_code != 0 and isinstance(done.exception, RequestNotFound)
