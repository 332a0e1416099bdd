"""Where a scraper is told to look, as the registry has it."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette

from router.doors.guard import Guard
from router.doors.keys import ApiKeys, ApiKeysConfig, digest_of
from router.explain.scale import NoPlans
from router.targets import target_route
from tests.router.test_placement import replica
from tests.router.trails import Hands

PATH = "http://router/metrics/targets"


class Planned(NoPlans):
    def __init__(self, text: str | None) -> None:
        self._text = text

    async def read_plan(self) -> str | None:
        return self._text


def worker(name: str, role: str, metrics: str):
    found = replica(name, role)
    found.record = found.record.model_copy(update={"metrics": metrics})
    return found


async def asked(app, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
        return await http.get(PATH, headers=headers)


async def test_workers_are_there_as_long_as_they_are_registered() -> None:
    pool = [worker("p-1", "prefill", "10.0.0.7:9101"), worker("old", "decode", "")]
    app = Starlette(routes=[target_route("prod", pool, NoPlans())])
    answer = await asked(app)
    assert answer.headers["content-type"] == "application/json"
    labels = {
        "pool": pool[0].record.pool,
        "replica": "p-1",
        "__meta_kvasir_cluster": "prod",
        "__meta_kvasir_role": "prefill",
    }
    # One that does not say where, as it is of an older version, is left out.
    assert answer.json() == [{"targets": ["10.0.0.7:9101"], "labels": labels}]
    pool.append(worker("d-2", "decode", "10.0.0.8:41234"))
    del pool[0]
    assert [group["targets"] for group in (await asked(app)).json()] == [["10.0.0.8:41234"]]
    pool.clear()
    assert (await asked(app)).json() == []


@pytest.mark.parametrize("plan", [None, '{"by": "an older one"}', '{"metrics": ""}', "{"])
async def test_a_planner_is_there_once_it_says_where(plan: str | None) -> None:
    app = Starlette(routes=[target_route("prod", [], Planned('{"metrics": "10.0.0.9:8002"}'))])
    labels = {"__meta_kvasir_cluster": "prod", "__meta_kvasir_role": "planner"}
    assert (await asked(app)).json() == [{"targets": ["10.0.0.9:8002"], "labels": labels}]
    app = Starlette(routes=[target_route("prod", [], Planned(plan))])
    assert (await asked(app)).json() == []


async def test_where_keys_are_asked_for_it_wants_an_admins(tmp_path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{digest_of('mine').hex()} me role=admin\n{digest_of('yours').hex()} you\n")
    keys = ApiKeys(ApiKeysConfig(file=path), Hands())
    app = Guard(Starlette(routes=[target_route("prod", [], NoPlans())]), keys, admin=True)
    assert (await asked(app)).status_code == 401
    assert (await asked(app, authorization="Bearer yours")).status_code == 403
    assert (await asked(app, authorization="Bearer mine")).json() == []
