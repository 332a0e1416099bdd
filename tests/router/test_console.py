"""What the console says on the admin port, and what it lets a browser do."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx

from router.console.events import PoolEvents
from router.console.held import Held
from router.console.history import KEPT, History
from router.console.http import STATIC
from router.console.latencies import latencies, percentile
from router.explain.trails import Trails
from router.flow.book import Outcome, Result
from router.flow.classes import FlowKey, SloConfig
from router.flow.control import FlowControl
from router.metrics import RouterMetrics
from router.pairs import MOST_PAIRS, PairBook
from router.pool import Pool
from tests.router.fleet import LIMITS, Fleet, until
from tests.router.test_flow import Replicas
from tests.router.test_service import NAMES, Client, router, sampling
from tests.router.test_trails import begin
from tests.router.trails import Hands
from workers.core.clock import VirtualClock, run_virtual
from workers.wire import worker_pb2 as worker

ROOT = Path(__file__).parents[2]


async def get(client: Client, path: str) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.get(f"http://{client.ports.admin}{path}")


async def overview(client: Client) -> dict[str, Any]:
    return (await get(client, "/api/overview")).json()


# -- the page --------------------------------------------------------------------------------------


async def test_the_page_and_its_files_run_nothing_but_our_own_scripts(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client:
        page = await get(client, "/")
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        named = re.findall(r'(?:src|href)="(console/[^"]+)"', page.text)
        assert {Path(name).name for name in named} >= {"console.css", "console.js", "icon.svg"}
        for answer in (page, *[await get(client, f"/{name}") for name in named]):
            assert answer.status_code == 200
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "script-src 'self'" in policy
            assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        script = await get(client, "/console/console.js")
        assert "javascript" in script.headers["content-type"]
        assert (await get(client, "/console/../http.py")).status_code == 404
        assert (await get(client, "/console/nothing.js")).status_code == 404


def test_the_page_needs_nothing_from_elsewhere_and_has_no_inline_script_or_style() -> None:
    page = (STATIC / "index.html").read_text("utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page)
    files = sorted(STATIC.iterdir())
    assert len(files) > 10 and all(file.is_file() for file in files), "package data: no folders"
    for file in files:
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text, file.name
        assert "innerHTML" not in text and "eval(" not in text, file.name
        imported = re.findall(r'from "\./([^"]+)"', text)
        assert all((STATIC / name).is_file() for name in imported), file.name


def test_the_page_is_part_of_the_package() -> None:
    assert 'router = ["console/static/*"]' in (ROOT / "pyproject.toml").read_text("utf-8")


# -- the overview ----------------------------------------------------------------------------------


async def test_pools_classes_and_pairs_stand_in_the_overview(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES, "decode-2") as client:
        await client.generate(text="w5 w6 w7", sampling=sampling())
        told = await overview(client)
        assert [pool["name"] for pool in told["pools"]] == ["prefill", "decode"]
        assert [len(pool["replicas"]) for pool in told["pools"]] == [1, 2]
        replica = told["pools"][0]["replicas"][0]
        assert (replica["id"], replica["state"], replica["role"]) == ("prefill-1", "up", "prefill")
        assert replica["blocks_total"] > 0
        (standard,) = [each for each in told["classes"] if each["default"]]
        assert standard["name"] == "standard" and standard["ended"] == standard["good"] == 1
        assert standard["latency"]["ttft_p95_s"] > 0
        (pair,) = told["pairs"]
        assert pair["sender"] == "prefill-1" and pair["receiver"] in ("decode-1", "decode-2")
        assert pair["handoffs"] == 1 and pair["transport"] == "gloo"
        assert told["requests"] == 1 and told["ready"] and not told["redis_up"]


async def test_a_replica_that_dies_is_told_as_down(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client:
        assert (await overview(client))["ready"]
        await client.fleet["decode-1"].kill()
        async with asyncio.timeout(20):
            while (told := await overview(client))["ready"]:
                await asyncio.sleep(0.05)
        (dead,) = told["pools"][1]["replicas"]
        assert dead["state"] == "down" and not dead["alive"] and dead["blocks_total"] == 0
        newest = next(event for event in told["events"] if event["replica"] == "decode-1")
        assert newest["what"].startswith("is down: ")


async def test_events_say_each_change_once_and_that_a_lease_has_run_out() -> None:
    fleet, events = Fleet(), PoolEvents()
    fake = await fleet.add("decode-1", "decode")

    def said() -> list[str]:
        return [event["what"].partition(":")[0] for event in events.told()][::-1]

    async with Pool(LIMITS.worker_silence_s, [events]) as pool:
        pool.sync(fleet.records())
        await until(lambda: said() == ["is up, decode"])
        fake.state = "draining"
        await until(lambda: said()[1:] == ["is draining, decode"])
        await fake.kill()
        await until(lambda: said()[2:] == ["is down"])
        await asyncio.sleep(0.5)  # it is called again and again, in vain
        pool.sync([])
        await until(lambda: said()[3:] == ["is gone"])
        assert [event["number"] for event in events.told()] == [4, 3, 2, 1]
    await fleet.close()


def test_an_answer_is_made_once_a_second_however_many_ask() -> None:
    made = []

    async def make() -> int:
        made.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.25)
        return len(made)

    async def main() -> None:
        held = Held(make, VirtualClock())
        for _ in range(5):
            assert len(set(await asyncio.gather(*[held.get() for _ in range(50)]))) == 1
            await asyncio.sleep(0.5)
        await asyncio.sleep(60)

    run_virtual(main())
    assert made == [0.0, 1.25, 2.5], "and never while nobody asks"


# -- the numbers -----------------------------------------------------------------------------------


def test_history_tells_rates_and_what_part_was_good() -> None:
    async def main() -> None:
        flow = FlowControl(SloConfig(), Replicas(1), VirtualClock())
        metrics = RouterMetrics()
        history = History(flow, metrics)
        key = FlowKey("standard", "")
        for second in range(KEPT + 20):
            metrics.generated(10)
            metrics.started()
            metrics.ended("ok", 1.0, failed=False)
            flow.book.passed(key, Outcome.ADMITTED)
            flow.book.ended(key, Result.GOOD if second % 4 else Result.LATE)
            history.note()
        series, rates = history.series(), history.rates()
        assert series["tokens_s"] == [10] * KEPT and series["queued"] == [0] * KEPT
        assert (rates["window_s"], rates["tokens_s"], rates["requests_s"]) == (60, 10, 1)
        recent = history.recent("standard")
        assert (recent["ended"], recent["good"], recent["goodput_s"]) == (60, 45, 0.75)
        assert set(recent["attained"][-60:]) == {0.7, 0.8} and len(recent["attained"]) == KEPT
        assert set(history.recent("batch")["attained"]) == {None}

    run_virtual(main())


def test_percentiles_are_of_requests_that_ended_lately() -> None:
    hands = Hands()
    trails = Trails(hands)
    for n in range(20):
        trail = begin(trails, f"old-{n}", hands.at)
        trail.let_in("standard", 0.0)
        trail.tokens(hands.at + 100.0, 1)
        trails.end(trail, "ok", "")
    hands(1000.0)
    for n in range(10):
        trail = begin(trails, f"new-{n}", 1000.0)
        trail.let_in("standard", 0.0)
        trail.tokens(1000.0 + 0.1 * (n + 1), 1)
        trail.tokens(1000.0 + 0.1 * (n + 1), 4)
        trails.end(trail, "ok", "")
    told = latencies(trails)["standard"]
    assert told["requests"] == 10
    assert round(told["ttft_p50_s"], 6) == 0.5 and round(told["ttft_p95_s"], 6) == 1.0
    assert told["itl_p50_s"] is not None
    assert percentile([], 0.5) is None and percentile([3.0, 1.0, 2.0], 0.5) == 2.0


def test_pairs_are_counted_and_bounded() -> None:
    book = PairBook()
    said = worker.Admitted(fetched_bytes=1000, transfer_s=0.5, exposed_s=0.1, transport="shm")
    for _ in range(3):
        book.fetched("prefill-0", "decode-0", said)
    for n in range(MOST_PAIRS - 1):
        book.fetched("prefill-1", f"decode-{n}", said)
    pairs = dict(book)
    assert len(pairs) == MOST_PAIRS and pairs["prefill-0", "decode-0"].handoffs == 3
    assert pairs["prefill-0", "decode-0"].num_bytes == 3000
    book.fetched("prefill-2", "decode-0", said)
    assert len(dict(book)) == MOST_PAIRS and ("prefill-0", "decode-0") not in dict(book)
    assert book.handoffs == MOST_PAIRS + 3, "what is forgotten of a pair still counts in the sum"


# -- requests, tickets, the plan, the chat ---------------------------------------------------------


async def test_requests_and_one_of_them(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client:
        for name in ("first", "second"):
            await client.generate(text="w5 w6", sampling=sampling(), request_id=name)
        listed = (await get(client, "/api/requests")).json()["requests"]
        assert [one["id"] for one in listed] == ["second", "first"]
        assert len((await get(client, "/api/requests?limit=1")).json()["requests"]) == 1
        for limit in ("0", "x", "99999", "-1"):
            assert (await get(client, f"/api/requests?limit={limit}")).status_code == 400
        (one,) = (await get(client, "/api/request/first")).json()["requests"]
        assert one["ttft"]["parts"] and one["choices"][0]["candidates"] and one["story"]
        unknown = await get(client, "/api/request/nobody")
        assert unknown.status_code == 404 and "nobody" in unknown.json()["error"]["message"]
        tickets = (await get(client, "/api/tickets")).json()["replicas"]
        assert [one["replica"] for one in tickets] == ["decode-1", "prefill-1"]


async def test_without_a_plan_it_says_why(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client:
        told = (await get(client, "/api/plan")).json()
        assert told["plan"] is None and "Redis" in told["error"]


async def test_the_chat_goes_the_way_of_every_request(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client, httpx.AsyncClient() as http:
        url = f"http://{client.ports.admin}/v1/completions"
        body = {"model": "tiny", "prompt": "w5 w6", "max_tokens": 3, "stream": True}
        headers = {"x-request-id": "from-the-page", "sec-fetch-site": "same-origin"}
        answer = await http.post(url, json=body, headers=headers)
        chunks = [line for line in answer.text.split("\n\n") if line]
        assert chunks[-1] == "data: [DONE]" and len(chunks) > 2
        assert json.loads(chunks[0].removeprefix("data: "))["choices"]
        found = await get(client, "/api/request/from-the-page")
        assert found.json()["requests"][0]["summary"]["outcome"] == "ok"


async def test_pages_of_other_origins_cannot_chat(tmp_path: Path) -> None:
    async with router(tmp_path, *NAMES) as client, httpx.AsyncClient() as http:
        url = f"http://{client.ports.admin}/v1/completions"
        body = {"model": "tiny", "prompt": "w5 w6", "max_tokens": 3}
        answer = await http.post(url, json=body, headers={"sec-fetch-site": "cross-site"})
        assert answer.status_code == 403 and "origins" in answer.json()["error"]["message"]
        assert not client.fleet["prefill-1"].calls
