"""`kvasir serve` with every lock on: TLS at the doors and inside, keys, a Redis with a password."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
import yaml
from openai import AsyncOpenAI, AuthenticationError

from cluster.access import Access
from cluster.admin_client import AdminClient
from router.doors.keys import digest_of
from tests.certificates import Authority
from tests.e2e.serving import PATIENCE_S, kvasir_serve
from tests.redis_server import redis_server
from workers.wire.tls import client_context

KEY, PASSWORD = "kv-user", "pass word"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_cluster_with_every_lock_on(tmp_path: Path) -> None:
    ours = Authority(tmp_path / "pki")
    ours.sign("router", "kvasir.example", "127.0.0.1")
    ours.sign("inside", "kvasir")
    (tmp_path / "keys").write_text(f"{digest_of(KEY).hex()} acme classes=standard\n")
    (tmp_path / "own").write_text("kv-own\n")
    (tmp_path / "password").write_text(PASSWORD)
    changes = {
        "router": {
            "tls": {"cert": "pki/router.crt", "key": "pki/router.key"},
            "api_keys": {"file": "keys", "admin_key_file": "own"},
        },
        "internal_tls": {"cert": "pki/inside.crt", "key": "pki/inside.key", "ca": "pki/ca.pem"},
        "planner": {"mode": "advise", "every_s": 1.0, "metrics_port": 0},
    }
    with redis_server("--requirepass", PASSWORD, password=PASSWORD) as redis:
        changes["redis"] = {"url": redis.url, "password_file": "password"}
        with kvasir_serve(tmp_path, changes=changes) as serving:
            assert serving.url.startswith("https://")
            access = Access("kv-own", ours.ca)
            with AdminClient(serving.grpc, access) as admin:
                await until_up(admin, serving.workers)
                await chats(serving.url, ours)
                told = yaml.safe_load((tmp_path / "cluster.yaml").read_text())
                told["slo"] = {"classes": {"standard": {}, "other": {}}}
                (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(told))
                async with asyncio.timeout(PATIENCE_S):
                    while {each.name for each in admin.status().classes} != {"standard", "other"}:
                        await asyncio.sleep(0.1)
                async with asyncio.timeout(PATIENCE_S):  # the planner is let in, too
                    while not planned(redis.client()):
                        await asyncio.sleep(0.1)
    for log in tmp_path.glob("*.log"):
        assert not any(word in log.read_text() for word in (PASSWORD, KEY, "kv-own")), log


async def until_up(admin: AdminClient, workers: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while sum(replica.up for replica in admin.status().replicas) < workers:
            await asyncio.sleep(0.1)


async def chats(url: str, ours: Authority) -> None:
    http = httpx.AsyncClient(verify=client_context(ours.ca))
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, http_client=http) as client:
        answer = await client.chat.completions.create(
            model="kvasir-demo",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
        )
        assert "Paris" in (answer.choices[0].message.content or "")
    http = httpx.AsyncClient(verify=client_context(ours.ca))
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", http_client=http) as stranger:
        with pytest.raises(AuthenticationError, match="not valid"):
            await stranger.models.list()


def planned(client) -> bool:
    with client:
        return bool(client.exists("{kvasir}:plan"))
