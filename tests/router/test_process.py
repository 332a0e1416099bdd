"""`python -m router` as a process: it starts, says so, refuses clearly, and ends when told."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import grpc

from router.config import Address, Limits, RouterConfig
from tests.redis_server import free_port
from tests.router.fleet import Fleet
from tests.router.tiny_model import write_model
from workers.wire import admin_pb2 as admin
from workers.wire import admin_pb2_grpc as admin_grpc
from workers.wire import inference_pb2 as inference
from workers.wire import inference_pb2_grpc as inference_grpc


def slice_file(folder: Path, **fields) -> Path:
    model = folder / "model"
    model.mkdir()
    any_port = {key: Address(port=0) for key in ("grpc", "http", "admin")}
    config = RouterConfig(model=str(write_model(model)), served_name="tiny", **any_port | fields)
    path = folder / "slice.json"
    path.write_text(config.model_dump_json())
    return path


async def start(path: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "router", "--config", str(path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def refusal(path: Path) -> str:
    process = await start(path)
    _, err = await process.communicate()
    assert process.returncode == 2, err
    text = err.decode()
    assert "Traceback" not in text
    return text


async def test_redis_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    port = free_port()
    url = f"redis://me:secret@127.0.0.1:{port}/0"
    said = await refusal(slice_file(tmp_path, redis=url))
    assert f"redis://127.0.0.1:{port}/0 cannot be reached" in said and "secret" not in said


async def test_who_records_does_not_keep_it_from_ending(tmp_path: Path) -> None:
    fleet = Fleet()
    await fleet.add("aggregated-1", "aggregated")
    path = slice_file(tmp_path, replicas=tuple(fleet.records()), limits=Limits(shutdown_s=600.0))
    process = await start(path)
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        address = line.split("grpc ")[1].split(",")[0]
        async with grpc.aio.insecure_channel(address) as channel:
            call = admin_grpc.AdminStub(channel).Record(admin.RecordRequest(salt=b"x" * 16))
            await call.read()
            process.send_signal(signal.SIGTERM)
            while await call.read() is not grpc.aio.EOF:
                pass
            async with asyncio.timeout(60):
                assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await fleet.close()


async def test_it_starts_and_ends_with_a_stream_in_flight(tmp_path: Path) -> None:
    fleet = Fleet()
    for name in ("prefill-1", "decode-1"):
        await fleet.add(name, name.partition("-")[0])
    fleet["decode-1"].script.append("wait after 1")
    path = slice_file(tmp_path, replicas=tuple(fleet.records()), limits=Limits(shutdown_s=0.5))
    process = await start(path)
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line.startswith("kvasir router listening: grpc 127.0.0.1:")
        address = line.split("grpc ")[1].split(",")[0]
        async with grpc.aio.insecure_channel(address) as channel:
            asked = inference.GenerateRequest(model="tiny", text="w5")
            call = inference_grpc.InferenceStub(channel).Generate(asked)
            await call.read()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    await fleet.quiet()
    await fleet.close()
    assert process.stderr is not None
    assert b"Traceback" not in await process.stderr.read()
