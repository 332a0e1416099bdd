"""The router's doors with TLS: who is let in, and certificates that are replaced meanwhile."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from router.app import Ports, serve
from router.config import Address, Limits, RouterConfig
from tests.certificates import Authority, serial
from tests.router.fleet import Fleet
from tests.router.tiny_model import write_model
from workers.core.errors import ConfigError
from workers.wire import inference_pb2 as inference
from workers.wire import inference_pb2_grpc as inference_grpc
from workers.wire.tls import DoorTls, ServerTls, TlsFiles, client_context


@asynccontextmanager
async def router(folder: Path, **given: object) -> AsyncIterator[Ports]:
    """One with an aggregated replica behind it."""
    fleet = Fleet()
    await fleet.add("aggregated-1", "aggregated")
    model = folder / "model"
    model.mkdir()
    config = RouterConfig(
        model=str(write_model(model)),
        served_name="tiny",
        **{key: Address(port=0) for key in ("grpc", "http", "admin")},
        replicas=tuple(fleet.records()),
        limits=Limits(shutdown_s=1.0),
        **given,
    )
    stop, told = asyncio.Event(), asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(config, stop, told.set_result))
    try:
        async with asyncio.timeout(30):
            await asyncio.wait((serving, told), return_when=asyncio.FIRST_COMPLETED)
            ports = told.result() if told.done() else await serving
            await until_ready(f"{'https' if config.tls else 'http'}://{ports.http}")
        yield ports
    finally:
        stop.set()
        await asyncio.wait_for(serving, 30)
        await fleet.close()


async def until_ready(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, verify=False) as client:
        while (await client.get("/ready")).status_code != 200:
            await asyncio.sleep(0.01)


def https(address: Address, context: ssl.SSLContext, **given: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"https://{address}", verify=context, **given)


async def health_over_grpc(
    address: Address, ca: Path, cert: Path | None = None, key: Path | None = None
) -> int:
    credentials = grpc.ssl_channel_credentials(
        ca.read_bytes(), key and key.read_bytes(), cert and cert.read_bytes()
    )
    async with grpc.aio.secure_channel(str(address), credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)).status


async def test_all_doors_speak_tls_and_nothing_else(tmp_path: Path) -> None:
    ours = Authority(tmp_path / "pki")
    cert, key = ours.sign("router")
    async with router(tmp_path, tls=DoorTls(cert=cert, key=key)) as ports:
        for address in (ports.http, ports.admin):
            async with https(address, client_context(ours.ca)) as client:
                assert (await client.get("/ready")).json() == {"status": "ok"}
            async with https(address, client_context()) as client:
                with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                    await client.get("/ready")
            async with httpx.AsyncClient(base_url=f"http://{address}") as client:
                with pytest.raises(httpx.TransportError):
                    await client.get("/ready")
        assert await health_over_grpc(ports.grpc, ours.ca) == 1
        async with grpc.aio.insecure_channel(str(ports.grpc)) as channel:
            stub = inference_grpc.InferenceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ListModels(inference.ListModelsRequest(), timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_ca_asks_for_certificates_but_not_of_probes(tmp_path: Path) -> None:
    ours, clients = Authority(tmp_path / "pki"), Authority(tmp_path / "clients", "clients")
    others = Authority(tmp_path / "others")
    cert, key = ours.sign("router")
    good, bad = clients.sign("me"), others.sign("me")
    tls = DoorTls(cert=cert, key=key, client_ca=clients.ca)
    async with router(tmp_path, tls=tls) as ports:
        for address, path in ((ports.http, "/v1/models"), (ports.admin, "/api/overview")):
            async with https(address, client_context(ours.ca)) as client:
                assert (await client.get("/ready")).status_code == 200
                assert (await client.get("/metrics")).status_code == 200
                refused = await client.get(path)
                assert refused.status_code == 403
                assert refused.json()["error"]["message"] == "a client certificate is needed here"
            async with https(address, client_context(ours.ca, *good)) as client:
                assert (await client.get(path)).status_code == 200
            async with https(address, client_context(ours.ca, *bad)) as client:
                with pytest.raises(httpx.TransportError):
                    await client.get("/ready")
        assert await health_over_grpc(ports.grpc, ours.ca, *good) == 1
        for pair in ((None, None), bad):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_over_grpc(ports.grpc, ours.ca, *pair)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_new_certificates_are_shown_to_who_connects_then(tmp_path: Path) -> None:
    ours = Authority(tmp_path / "pki")
    cert, key = ours.sign("router")
    async with router(tmp_path, tls=DoorTls(cert=cert, key=key)) as ports:
        doors = (ports.http, ports.admin, ports.grpc)
        first = serial(cert)
        assert {await shown(door, ours.ca) for door in doors} == {first}
        async with https(ports.http, client_context(ours.ca)) as client:
            assert (await client.get("/ready")).status_code == 200
            ours.sign("router")
            second = serial(cert)
            assert {await shown(door, ours.ca) for door in doors} == {second} != {first}
            key.write_bytes(b"half of a pair")
            assert {await shown(door, ours.ca) for door in doors} == {second}
            assert (await client.get("/ready")).status_code == 200, "its connection goes on"
        newer = Authority(tmp_path / "pki", "newer")
        newer.sign("router")
        assert {await shown(door, newer.ca) for door in doors} == {serial(cert)}
        assert await health_over_grpc(ports.grpc, newer.ca) == 1


async def shown(address: Address, ca: Path) -> int:
    """The serial number of the certificate there."""
    context = client_context(ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    found = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    return int(found, 16)


def wrong_key(ours: Authority) -> TlsFiles:
    (cert, _), (_, key) = ours.sign("one"), ours.sign("other")
    return TlsFiles(cert=cert, key=key)


def no_file(ours: Authority) -> TlsFiles:
    cert, _ = ours.sign("one")
    return TlsFiles(cert=cert, key=ours.folder / "nowhere.key")


@pytest.mark.parametrize(
    ("files", "says"), [(wrong_key, "KEY_VALUES_MISMATCH"), (no_file, "nowhere.key: No such file")]
)
def test_files_that_do_not_fit_are_named_at_start(
    tmp_path: Path, files: Callable[[Authority], TlsFiles], says: str
) -> None:
    with pytest.raises(ConfigError, match=f"TLS with .*one.crt.*{says}"):
        ServerTls(files(Authority(tmp_path / "pki")))
