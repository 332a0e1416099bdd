"""Requests explained after they went their way through real gRPC: late, early, rebound, moved,
aggregated, refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import httpx
import pytest

from router.explain.answer import explanation
from router.explain.trail import Trail
from router.flow.classes import SloClass, SloConfig
from tests.router.fleet import House, house, request, until
from tests.router.test_dispatch import check_output
from tests.router.test_early import early
from tests.router.test_service import Client, router, sampling
from workers.core.errors import Unavailable
from workers.core.request import Request
from workers.wire import admin_pb2 as admin

NAMES = ("prefill-1", "decode-1")


class Explained:
    """A request in a house without doors, with the trail that a door would have given it."""

    def __init__(self, inside: House, asked: Request) -> None:
        self.inside = inside
        self.asked = asked
        self.trail = Trail(inside.clock.now, inside.clock.now(), "mine")
        self.trail.asked(asked)

    async def run(self) -> None:
        now = self.inside.clock.now
        self.trail.let_in("standard", 0.0)
        seen = []
        async for emission in self.inside.dispatcher.run(self.asked, trail=self.trail):
            self.trail.tokens(now(), len(emission.tokens))
            seen.append(emission)
        check_output(self.asked, seen)
        self.trail.ended_at, self.trail.outcome = now(), "ok"

    def told(self) -> admin.Explanation:
        told = explanation(self.trail, self.inside.clock.now())
        check_sums(told)
        return told


def check_sums(told: admin.Explanation) -> None:
    for poured, total_s in (
        (told.ttft, told.summary.ttft_s),
        (told.first_gap, told.summary.first_gap_s),
    ):
        assert poured.total_s == total_s > 0
        assert sum(part.seconds for part in poured.parts) == pytest.approx(total_s)
        assert all(part.seconds >= 0 for part in poured.parts)


def story(told: admin.Explanation) -> list[str]:
    """In the order of time."""
    times = [line.at_s for line in told.story]
    assert times == sorted(times)
    return [line.what for line in told.story]


def follows(told: admin.Explanation, *wanted: str) -> None:
    """The story says these things, in this order."""
    lines = iter(story(told))
    for words in wanted:
        assert any(words in line for line in lines), (words, story(told))


def compared(told: admin.Explanation) -> dict[str, tuple[float, float]]:
    return {one.name: (one.predicted, one.actual) for one in told.compared}


async def explain(client: Client, name: str) -> admin.Explanation:
    answer = await client.admin.ExplainRequest(admin.ExplainRequestRequest(id=name))
    return answer.requests[0]


async def test_a_request_whose_ticket_is_bound_late(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES, "decode-2") as client:
        await client.generate(text="w5 w6 w7", sampling=sampling(), request_id="mine", tenant="t")
        told = await explain(client, "mine")
        check_sums(told)
        head = told.summary
        assert (head.outcome, head.slo_class, head.tenant) == ("ok", "standard", "t")
        assert (head.prompt_tokens, head.output_tokens, head.prefill) == (3, 4, "prefill-1")
        assert client.fleet["prefill-1"].calls[0].sequence.request_id == head.worker_id
        prefill, weighed, bound = told.choices
        assert [one.replica for one in prefill.candidates] == ["prefill-1"]
        assert {one.replica: one.why for one in prefill.refused} == {
            "decode-1": "role", "decode-2": "role",
        }  # fmt: skip
        assert prefill.candidates[0].work_s > 0 and prefill.candidates[0].cost_s > 0
        assert weighed.timing.timing == "late: little gain" and not bound.HasField("timing")
        assert sorted(one.replica for one in bound.candidates) == ["decode-1", "decode-2"]
        assert bound.replica == head.decode and bound.candidates[0].transfer_s > 0
        follows(told, "came with 3", "let in as standard", "placed on prefill-1",
                "first token is out", "bound to", "by gloo", "second token",
                "ok, 4 tokens")  # fmt: skip
        honest = compared(told)
        assert honest["cached at prefill"] == (0, 2), "what the worker said it found"
        assert honest["TTFT"][1] == head.ttft_s and honest["FIRST_GAP"][1] == head.first_gap_s
        assert honest["FIRST_GAP"][0] > honest["transfer, exposed"][0] > 0


async def test_a_ticket_bound_early_says_what_it_weighed() -> None:
    async with early(*NAMES) as (inside, prefill, _):
        asked = Explained(inside, request())
        asking = asyncio.create_task(asked.run())
        await until(lambda: bool(inside.fleet["decode-1"].calls))
        prefill.gate.set()
        await asking
        told = asked.told()
        placed, bound = told.choices
        assert (placed.phase, bound.phase) == ("prefill", "decode")
        assert bound.timing.timing == "early" and bound.timing.gain_s > 0
        assert compared(told)["transfer, exposed"][0] < bound.timing.transfer_s
        follows(told, "placed on prefill-1", "binding to decode-1 now: early",
                "bound to decode-1", "first token is out", "its KV is there")  # fmt: skip


async def test_a_ticket_that_is_bound_again_says_why() -> None:
    async with house(*NAMES, "decode-2") as inside:
        for name in ("decode-1", "decode-2"):
            inside.fleet[name].script.append("RESOURCE_EXHAUSTED")
        asked = Explained(inside, request())
        await asked.run()
        told = asked.told()
        first, second, third = [
            choice for choice in told.choices if choice.phase == "decode"
        ][-3:]  # fmt: skip
        assert {first.replica, second.replica} == {"decode-1", "decode-2"}
        assert {one.replica: one.why for one in second.refused}[first.replica] == "failed_it"
        assert third.replica == told.summary.decode
        follows(told, "epoch 1", "binding failed: ", "epoch 2", "binding failed: ", "epoch 3",
                "its KV is there")  # fmt: skip
        hold = {part.name: part.seconds for part in told.first_gap.parts}["ticket hold"]
        assert hold > 0.05, "it paused twice before somebody took it"
        await inside.fleet.quiet()


async def test_a_worker_that_dies_makes_an_attempt_that_failed() -> None:
    async with house("prefill-1", "prefill-2", "decode-1") as inside:
        for name in ("prefill-1", "prefill-2"):
            inside.fleet[name].script.append("UNAVAILABLE")
        asked = Explained(inside, request())
        await asked.run()
        told = asked.told()
        follows(told, "placed on", "the attempt failed", "placed on", "the attempt failed",
                "placed on", "first token is out")  # fmt: skip
        parts = {part.name: part.seconds for part in told.ttft.parts}
        assert parts["failed attempts"] > 0.05
        placed = [choice for choice in told.choices if choice.phase == "prefill"]
        assert [one.why for one in placed[1].refused if one.replica == placed[0].replica] == [
            "failed_it"
        ]
        await inside.fleet.quiet()


async def test_a_sequence_that_moves() -> None:
    async with house("prefill-1", "decode-1", "decode-2") as inside:
        old, new = inside.fleet["decode-1"], inside.fleet["decode-2"]
        new.state = "draining"
        await until(lambda: not inside.pool.get("decode-2").up)
        old.hold_at = 20
        asked = Explained(inside, request(max_tokens=30))
        asking = asyncio.create_task(asked.run())
        await until(lambda: asked.trail.output_tokens == 10)
        assert asked.told().summary.outcome == "", "it is under way"
        new.state = "ready"
        await until(lambda: inside.pool.get("decode-2").up)
        old.state = "draining"
        await asking
        told = asked.told()
        follows(told, "second token", "decode-1 offers it", "moving to decode-2",
                "its KV is there", "moved to decode-2", "ok, 30 tokens")  # fmt: skip
        assert told.choices[-1].moving and told.summary.decode == "decode-2"
        assert {one.replica for one in told.choices[-1].refused} >= {"decode-1"}
        assert compared(told)["FIRST_GAP"][1] == told.summary.first_gap_s
        await inside.fleet.quiet()


async def test_an_aggregated_replica_stands_beside_those_that_only_prefill(tmp_path: Path) -> None:
    async with router(tmp_path, "aggregated-1") as client:
        await client.generate(text="w5 w6 w7", sampling=sampling(), request_id="mine")
        told = await explain(client, "mine")
        check_sums(told)
        (choice,) = told.choices
        assert choice.replica == "aggregated-1" and choice.phase == "prefill"
        assert told.summary.prefill == told.summary.decode == "aggregated-1"
        parts = {part.name: part.seconds for part in told.first_gap.parts}
        assert parts["first decode step"] > 0
        assert parts["transfer"] == parts["ticket hold"] == 0
        assert compared(told)["cached at prefill"] == (0, 2)


async def test_who_finds_nobody_is_told_why_each_replica_could_not(tmp_path: Path) -> None:
    async with router(tmp_path, "decode-1") as client:
        error = await client.refused(text="w5", request_id="mine")
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        told = await explain(client, "mine")
        assert told.summary.outcome == "unavailable" and "no worker" in told.summary.error
        (choice,) = told.choices
        assert not choice.candidates and not choice.replica
        assert [(one.replica, one.why) for one in choice.refused] == [("decode-1", "role")]
        follows(told, "let in", "no replica can prefill it", "unavailable")


async def test_what_the_line_refused_is_explained_too(tmp_path: Path) -> None:
    slo = SloConfig(classes={"tiny": SloClass(max_queue=1, max_wait=0.01)}, default="tiny")
    async with router(tmp_path, *NAMES, slo=slo, max_requests=1) as client:
        client.fleet["prefill-1"].script.append("gate before")
        asking = asyncio.create_task(client.generate(text="w5", sampling=sampling()))
        await until(lambda: bool(client.fleet["prefill-1"].calls))
        error = await client.refused(text="w5", request_id="mine")
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        told = await explain(client, "mine")
        assert told.summary.outcome == "resource_exhausted" and told.summary.prompt_tokens == 1
        assert not told.choices and error.details() == told.summary.error
        client.fleet["prefill-1"].gate.set()
        await asking


async def test_both_doors_to_it_and_every_name(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client, httpx.AsyncClient() as http:
        body = {"model": "tiny", "prompt": "w5 w6", "max_tokens": 2, "n": 2}
        answer = await http.post(
            f"http://{client.ports.http}/v1/completions", json=body,
            headers={"x-request-id": "from-me"},
        )  # fmt: skip
        answer_id = answer.json()["id"]
        told = await client.admin.ExplainRequest(admin.ExplainRequestRequest(id="from-me"))
        assert {one.summary.id for one in told.requests} == {f"{answer_id}-0", f"{answer_id}-1"}
        ages = [one.summary.age_s for one in told.requests]
        assert ages == sorted(ages), "newest first"
        base = f"http://{client.ports.admin}/explain"
        for name in ("from-me", answer_id, told.requests[0].summary.worker_id):
            found = (await http.get(f"{base}/request/{name}")).json()["requests"]
            assert found and all(one["ttft"]["total_s"] > 0 for one in found)
        listed = (await http.get(f"{base}/requests")).json()["requests"]
        assert [one["id"] for one in listed] == [one.summary.id for one in told.requests]
        assert len((await http.get(f"{base}/requests?limit=1")).json()["requests"]) == 1
        assert (await http.get(f"{base}/requests?limit=x")).status_code == 400
        unknown = await http.get(f"{base}/request/nobody")
        assert unknown.status_code == 404 and "nobody" in unknown.json()["error"]["message"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await explain(client, "nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_request_that_gives_up_keeps_its_errors() -> None:
    async with house("prefill-1", "decode-1") as inside:
        inside.fleet["prefill-1"].script.extend(["UNAVAILABLE"] * 9)
        asked = Explained(inside, request())
        with pytest.raises(Unavailable):
            await asked.run()
        told = explanation(asked.trail, inside.clock.now())
        failures = [line for line in story(told) if line.startswith("the attempt failed")]
        assert len(failures) == 5 and all("scripted UNAVAILABLE" in line for line in failures)
        assert not told.HasField("ttft")
