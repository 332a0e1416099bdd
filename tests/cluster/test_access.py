"""How our commands and processes come in where the router asks for keys and certificates."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.access import Access, own_access
from cluster.admin_client import AdminClient, follow_record
from cluster.commands.app import app
from router.app import Ports
from router.doors.keys import ApiKeysConfig, digest_of, read_keys
from tests.certificates import Authority
from tests.router.test_doors_tls import router
from workers.core.errors import InvalidRequest, Unavailable
from workers.wire import admin_pb2 as admin
from workers.wire.tls import DoorTls

KEY = "kv-admin"


@asynccontextmanager
async def closed_door(
    folder: Path, *hosts: str, name: str | None = None
) -> AsyncIterator[tuple[Ports, DoorTls, ApiKeysConfig, Authority]]:
    """TLS with a certificate for `hosts`, clients with certificates, and keys."""
    ours = Authority(folder / "pki")
    cert, key = ours.sign("router", *hosts)
    tls = DoorTls(cert=cert, key=key, client_ca=ours.ca, name=name)
    (folder / "keys").write_text(f"{digest_of(KEY).hex()} ops role=admin\n")
    (folder / "own").write_text("kv-own")
    keys = ApiKeysConfig(file=folder / "keys", admin_key_file=folder / "own")
    async with router(folder, tls=tls, api_keys=keys) as ports:
        yield ports, tls, keys, ours


def run(*arguments: str, env: dict[str, str] | None = None, text: str | None = None) -> str:
    done = CliRunner().invoke(app, arguments, env=env, input=text)
    if done.exception is not None:
        raise done.exception
    return done.output


async def test_commands_show_a_key_and_a_certificate(tmp_path: Path) -> None:
    async with closed_door(tmp_path) as (ports, _, _, ours):
        cert, key = ours.sign("me")
        both = tmp_path / "me.pem"
        both.write_text(cert.read_text() + key.read_text())
        tls = (f"--ca={ours.ca}", f"--cert={both}")
        grpc = f"--router={ports.grpc}"
        said = await asyncio.to_thread(run, "status", grpc, *tls, f"--api-key={KEY}")
        assert "aggregated-1" in said
        env = {"KVASIR_API_KEY": KEY, "KVASIR_CA": str(ours.ca), "KVASIR_CERT": str(both)}
        said = await asyncio.to_thread(run, "explain", "requests", grpc, "--json", env=env)
        assert json.loads(said) == {"requests": []}
        said = await asyncio.to_thread(
            run, "chat", f"--url=https://{ports.http}", "--max-tokens=4", env=env, text="w5 w6\n"
        )
        assert said.strip()
        with pytest.raises(Unavailable, match="UNAUTHENTICATED: no API key.*--api-key or KVASIR"):
            await asyncio.to_thread(run, "status", grpc, *tls)


async def test_our_own_processes_need_no_authority(tmp_path: Path) -> None:
    """They trust the router's own certificate, also where it is for another name."""
    async with closed_door(tmp_path, "kvasir.example", name="kvasir.example") as (
        ports, tls, keys, _,
    ):  # fmt: skip
        access = own_access(tls, keys)
        assert access.api_key == "kv-own"
        with AdminClient(str(ports.grpc), access) as client:
            assert len((await asyncio.to_thread(client.status)).replicas) == 1
        batches = follow_record(str(ports.grpc), admin.RecordRequest(salt=b"x" * 16), access)
        assert await anext(batches) is not None
        await batches.aclose()


async def test_without_a_key_file_of_ours_the_environment_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ApiKeysConfig(file=tmp_path / "keys")
    assert own_access(None, keys) == Access()
    monkeypatch.setenv("KVASIR_API_KEY", KEY)
    assert own_access(None, keys) == Access(KEY)


def test_a_new_key_and_its_line(tmp_path: Path) -> None:
    said = run("key", "new", "acme", "--classes=batch,standard", "--requests=8")
    secret, line = (text.split(":", 1)[1].strip() for text in said.splitlines())
    (tmp_path / "keys").write_text(line)
    (key,) = read_keys(tmp_path / "keys").values()
    assert key.digest == digest_of(secret) and secret not in line
    assert (key.tenant, key.classes, key.requests) == ("acme", ("batch", "standard"), 8)
    assert not key.admin
    with pytest.raises(InvalidRequest, match="tenant 'a b'"):
        run("key", "new", "a b")
