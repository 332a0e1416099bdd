"""API keys at the doors: who is let in, as whom, and what a changed file does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.api import Terms
from router.app import Ports
from router.doors.guard import Guard
from router.doors.keys import ApiKeys, ApiKeysConfig, digest_of, new_secret, read_keys
from router.gateway.app import create_app
from tests.router.fake_generator import FakeGenerator
from tests.router.test_doors_tls import router
from workers.core.errors import ConfigError, Overloaded, PermissionDenied, Unauthenticated
from workers.wire import admin_pb2 as admin
from workers.wire import admin_pb2_grpc as admin_grpc
from workers.wire import inference_pb2 as inference
from workers.wire import inference_pb2_grpc as inference_grpc

USER, BATCH, ADMIN, OWN = "kv-user", "kv-batch", "kv-admin", "kv-own"
ASKED = {"model": "demo", "prompt": "hi", "max_tokens": 2}


def line(secret: str, rest: str) -> str:
    return f"{digest_of(secret).hex()} {rest}\n"


def key_files(folder: Path, **more: Any) -> ApiKeysConfig:
    path, own = folder / "keys", folder / "own"
    text = "# who may come in\n" + line(USER, "acme") + line(ADMIN, "ops role=admin  # night shift")
    path.write_text(text + line(BATCH, "night classes=batch requests=1"))
    own.write_text(f"{OWN}\n")
    return ApiKeysConfig(file=path, admin_key_file=own, **more)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


@asynccontextmanager
async def gateway(
    folder: Path, generator: FakeGenerator, **more: Any
) -> AsyncIterator[httpx.AsyncClient]:
    keys = ApiKeys(key_files(folder, **more), Hand())
    classes = ["standard", "interactive", "batch"]
    app = create_app(generator, ready=lambda: True, classes=lambda: classes, keys=keys)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({}, "no API key: send it as `Authorization: Bearer KEY`"),
        (bearer("kv-other"), "the API key is not valid"),
        (bearer(digest_of(USER).hex()), "the API key is not valid"),
        ({"authorization": "Basic eDprdi11c2Vy"}, "no API key"),
        (bearer("x" * 100_000), "the API key is not valid"),
    ],
)
async def test_without_a_key_that_is_known(
    tmp_path: Path, headers: dict[str, str], says: str
) -> None:
    generator = FakeGenerator()
    async with gateway(tmp_path, generator) as client:
        for path in ("/v1/completions", "/nowhere"):
            answer = await client.post(path, json=ASKED, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]
            error = answer.json()["error"]
            assert error["message"].startswith(says)
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
    assert not generator.calls


async def test_the_tenant_is_that_of_the_key_whatever_the_client_says(tmp_path: Path) -> None:
    generator = FakeGenerator()
    async with gateway(tmp_path, generator) as client:
        headers = bearer(USER) | {"x-kvasir-tenant": "other", "x-kvasir-class": "interactive"}
        answer = await client.post("/v1/completions", json=ASKED, headers=headers)
        assert answer.status_code == 200, answer.text
    (call,) = generator.calls
    assert (call.terms.tenant, call.terms.slo_class) == ("acme", "interactive")
    assert call.cache_salt == ""


async def test_a_key_may_be_for_some_classes_only(tmp_path: Path) -> None:
    generator = FakeGenerator()
    async with gateway(tmp_path, generator) as client:
        answer = await client.post("/v1/completions", json=ASKED, headers=bearer(BATCH))
        assert answer.status_code == 200
        for asked, headers in (
            (ASKED, bearer(BATCH) | {"x-kvasir-class": "interactive"}),
            (ASKED | {"service_tier": "priority"}, bearer(BATCH)),
        ):
            refused = await client.post("/v1/completions", json=asked, headers=headers)
            assert refused.status_code == 403
            message = refused.json()["error"]["message"]
            assert message == "this API key is for the service class batch, not interactive"
    assert [call.terms.slo_class for call in generator.calls] == ["batch"]


async def test_tenants_can_have_caches_of_their_own(tmp_path: Path) -> None:
    generator = FakeGenerator()
    async with gateway(tmp_path, generator, private_cache=True) as client:
        for secret, salt in ((USER, ""), (USER, "x"), (ADMIN, ""), (ADMIN, "x")):
            asked = ASKED | {"cache_salt": salt}
            answer = await client.post("/v1/completions", json=asked, headers=bearer(secret))
            assert answer.status_code == 200, answer.text
    salts = [call.cache_salt for call in generator.calls]
    assert salts == ["4:acme:", "4:acme:x", "3:ops:", "3:ops:x"]


async def test_requests_at_once_are_counted_until_the_last_byte(tmp_path: Path) -> None:
    generator = FakeGenerator()
    generator.gate_at = 2
    async with gateway(tmp_path, generator) as client:
        asked = ASKED | {"stream": True}
        first = asyncio.create_task(
            client.post("/v1/completions", json=asked, headers=bearer(BATCH))
        )
        await generator.started.wait()
        refused = await client.post("/v1/completions", json=asked, headers=bearer(BATCH))
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert "has 1 requests under way" in refused.json()["error"]["message"]
        generator.gate.set()
        assert (await first).status_code == 200
        assert (await client.get("/v1/models", headers=bearer(BATCH))).status_code == 200


async def test_grpc_asks_for_keys_too(tmp_path: Path) -> None:
    async with (
        router(tmp_path, api_keys=key_files(tmp_path)) as ports,
        grpc.aio.insecure_channel(str(ports.grpc)) as channel,
    ):
        models = inference_grpc.InferenceStub(channel).ListModels
        status = admin_grpc.AdminStub(channel).Status
        health = health_pb2_grpc.HealthStub(channel).Check
        assert (await health(health_pb2.HealthCheckRequest())).status == 1

        async def code(method: Any, request: Any, secret: str | None) -> str:
            metadata = list(bearer(secret).items()) if secret is not None else None
            try:
                await method(request, metadata=metadata, timeout=10)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        found = [
            [
                await code(models, inference.ListModelsRequest(), secret),
                await code(status, admin.StatusRequest(), secret),
            ]
            for secret in (None, "kv-other", USER, ADMIN, OWN)
        ]
        assert found == [
            ["UNAUTHENTICATED", "UNAUTHENTICATED"],
            ["UNAUTHENTICATED", "UNAUTHENTICATED"],
            ["OK", "PERMISSION_DENIED"],
            ["OK", "OK"],
            ["OK", "OK"],
        ]
        await streams_as_its_tenant(channel, ports)


async def streams_as_its_tenant(channel: grpc.aio.Channel, ports: Ports) -> None:
    generate = inference_grpc.InferenceStub(channel).Generate
    asked = inference.GenerateRequest(model="tiny", text="w5 w6", tenant="other", request_id="mine")
    asked.sampling.max_tokens = 2
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [_ async for _ in generate(asked, timeout=10)]
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    metadata = list(bearer(USER).items())
    assert [_ async for _ in generate(asked, metadata=metadata, timeout=10)]
    async with httpx.AsyncClient(base_url=f"http://{ports.admin}") as client:
        assert (await client.get("/api/overview", headers=bearer(USER))).status_code == 403
        refused = await client.get("/api/overview")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic "), "for browsers"
        assert (await client.get("/metrics")).status_code == 200
        client.auth = httpx.BasicAuth("me", ADMIN)
        told = (await client.get("/api/request/mine")).json()
        assert told["requests"][0]["summary"]["tenant"] == "acme", told
        assert (await client.get("/v1/models")).status_code == 200, "as the console asks for it"


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at


def test_a_changed_file_holds_within_a_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Hand()
    config = key_files(tmp_path)
    keys = ApiKeys(config, clock)
    assert keys.find(USER).tenant == "acme"
    config.file.write_text(line("kv-new", "acme"))
    clock.at += 1.0
    assert keys.find("kv-new").tenant == "acme"
    with pytest.raises(Unauthenticated):
        keys.find(USER)
    assert keys.find(OWN, admin=True).admin
    config.file.write_text("kv-plain acme\n")
    clock.at += 1.0
    with caplog.at_level(logging.ERROR):
        assert keys.find("kv-new").tenant == "acme", "a file with a fault is ignored"
    assert f"{config.file}:1: expected the SHA-256 of a key" in caplog.text
    assert "kv-plain" not in caplog.text, "it might be a key"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense acme\n", "keys:1: expected the SHA-256 of a key in hex"),
        (line("k", ""), "keys:1: expected"),
        ("\n" + line("k", "acme role=root"), "keys:2: role is 'root'; it must be user or admin"),
        (line("k", "acme requests=0"), "keys:1: requests is '0'"),
        (line("k", "acme clases=a"), "unknown option 'clases'; known: role, classes, requests"),
        (line("k", "acme") + line("k", "other"), "keys:2: this key stands here twice"),
    ],
)
def test_a_file_at_fault_is_refused_at_start(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        read_keys(tmp_path / "keys")


def test_keys_are_long_and_random() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100 and all(len(secret) >= 46 for secret in made)


async def test_a_guard_without_keys_lets_in(tmp_path: Path) -> None:
    app = Guard(create_app(FakeGenerator(), ready=lambda: True), None)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.get("/v1/models")).status_code == 200


def test_what_a_key_says_of_terms(tmp_path: Path) -> None:
    keys = ApiKeys(key_files(tmp_path), Hand())
    asked = Terms(tenant="me", deadline_s=3.0, priority=2)
    assert keys.find(USER).terms(asked) == Terms(None, "acme", 3.0, 2)
    assert keys.find(BATCH).terms(asked).slo_class == "batch"
    with pytest.raises(PermissionDenied):
        keys.find(USER, admin=True)
    key = keys.find(BATCH)
    with keys.using(key), pytest.raises(Overloaded), keys.using(key):
        pass
    with keys.using(key):
        pass
