"""The supervisor with tiny stand-ins for children: real processes, no cluster."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import redis.asyncio

from cluster.backends.local import base_url
from cluster.backends.ports import free_ports, settle
from cluster.backends.process import Child, ChildSpec
from cluster.backends.run_folder import MARK, PREFIX, run_folder
from cluster.backends.supervisor import Patience, Supervisor
from cluster.redis_server import check, check_unused, registered, server_spec, wait_until_up
from router.config import Address
from tests.cluster.processes import gone, is_alive
from tests.redis_server import redis_server
from workers.core.errors import ConfigError
from workers.wire.redis_endpoint import RedisEndpoint
from workers.wire.redis_keys import ReplicaRecord, replica_key, without_password

QUICK = Patience(first_s=0.01, longest_s=0.02, grace_s=5.0)
SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('up', flush=True); time.sleep(600)"
)


def python(code: str, name: str = "child") -> ChildSpec:
    return ChildSpec(name, [sys.executable, "-S", "-c", code])


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def test_a_dead_child_is_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, said.append, patience=QUICK)
    async with supervisor.tier([python(SLEEPER)]):
        supervisor.ready = True
        await until(lambda: supervisor.children)
        first = supervisor.children["child"].pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.children["child"].pid != first)
        second = supervisor.children["child"].pid
        assert is_alive(second)
    await gone(first, second)
    assert said == ["child was killed by SIGKILL; starting it again in 0.0 s"]


async def test_children_that_ignore_sigterm_are_killed(tmp_path: Path) -> None:
    child = await Child.start(python(STUBBORN), tmp_path)
    await until(lambda: "up" in child.last_words())
    await child.stop(0.05)
    assert await child.wait() == -signal.SIGKILL
    await gone(child.pid)


async def test_a_config_fault_is_not_tried_again(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, said.append, patience=QUICK)
    bad = python("import sys; sys.exit(print('no such checkpoint', file=sys.stderr) or 2)", "bad")
    other = python(SLEEPER, "other")
    with pytest.raises(ExceptionGroup) as caught:
        async with supervisor.tier([bad, other]):
            await asyncio.Event().wait()
    (fault,) = caught.value.exceptions
    assert isinstance(fault, ConfigError)
    assert str(fault) == "bad cannot start: no such checkpoint"
    assert said == []
    await gone(supervisor.children["other"].pid)


async def test_crashes_before_the_cluster_is_ready_end_it(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, said.append, patience=QUICK)
    with pytest.raises(ExceptionGroup) as caught:
        async with supervisor.tier([python("raise RuntimeError('broken')")]):
            await asyncio.Event().wait()
    assert "ended with code 1 3 times" in str(caught.value.exceptions[0])
    assert "RuntimeError: broken" in str(caught.value.exceptions[0])
    assert len(said) == 2


async def test_tiers_end_inside_out_when_cancelled(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, print, patience=QUICK)
    up = asyncio.Event()

    async def run() -> None:
        async with supervisor.tier([python(SLEEPER, "a")]), supervisor.tier([python(SLEEPER, "b")]):
            await until(lambda: len(supervisor.children) == 2)
            up.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await up.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(*(child.pid for child in supervisor.children.values()))


def test_children_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from cluster.backends.process import Child, ChildSpec\n"
        "async def main():\n"
        "    argv = [sys.executable, '-S', '-c', 'import time; time.sleep(600)']\n"
        "    spec = ChildSpec('child', argv)\n"
        f"    child = await Child.start(spec, Path({str(tmp_path)!r}))\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    asyncio.run(gone(pid))


async def test_what_a_cleaner_took_is_laid_out_again(tmp_path: Path) -> None:
    said: list[str] = []
    folder, logs = tmp_path / "run", tmp_path / "run" / "logs"
    slice_ = folder / "slice.json"
    code = f"print(open({str(slice_)!r}).read(), flush=True); import time; time.sleep(600)"
    spec = ChildSpec("child", [sys.executable, "-S", "-c", code], files={slice_: "the slice"})
    supervisor = Supervisor(logs, said.append, patience=QUICK)
    async with supervisor.tier([spec]):
        await until(lambda: "child" in supervisor.children)
        supervisor.ready = True
        first = supervisor.children["child"].pid
        shutil.rmtree(folder)
        assert "No such file" in supervisor.last_line("child")
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.children["child"].pid != first)
        await until(lambda: "the slice" in supervisor.last_line("child"))
    assert len(said) == 1


async def test_a_child_that_cannot_be_started_is_tried_again_once_ready(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, said.append, patience=QUICK)
    program = tmp_path / "program"
    spec = ChildSpec("child", [str(program)])
    with pytest.raises(ExceptionGroup) as caught:
        async with supervisor.tier([spec]):
            await asyncio.Event().wait()
    (fault,) = caught.value.exceptions
    assert isinstance(fault, ConfigError)
    assert "child cannot be started" in str(fault)
    supervisor.ready = True
    async with supervisor.tier([spec]):
        await until(lambda: len(said) > 3)
        program.symlink_to(sys.executable)
        await until(lambda: supervisor.children)
    assert "child cannot be started" in said[0]
    assert str(program) in said[0]


# -- the run folder ------------------------------------------------------------------------------


def test_run_folders_of_dead_supervisors_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, new, other = (tmp_path / f"{PREFIX}{name}" for name in ("dead", "new", "other"))
    dead.mkdir()
    (dead / MARK).touch()
    new.mkdir()
    other.touch()
    with run_folder() as first:
        (first / MARK).touch()
        assert first.stat().st_mode & 0o777 == 0o700
        assert not dead.exists()
        with run_folder() as second:
            assert first != second
            assert first.exists()
        assert not second.exists()
    assert sorted(tmp_path.iterdir()) == [new, other]


# -- ports ---------------------------------------------------------------------------------------


def test_back_off() -> None:
    patience = Patience(first_s=0.2, longest_s=5.0)
    assert [round(patience.delay(n), 1) for n in (1, 2, 3, 6, 60)] == [0.2, 0.4, 0.8, 5.0, 5.0]


def test_ports() -> None:
    ports = free_ports(8)
    assert len(set(ports)) == 8
    settled = settle(Address(port=0), "router.http")
    assert settled.port > 0
    assert settle(settled, "router.http") == settled


async def test_a_taken_port_is_named() -> None:
    (port,) = free_ports(1)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    async with server:
        with pytest.raises(ConfigError, match=rf"port {port} .*\(router.http\) is already taken"):
            settle(Address(port=port), "router.http")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (Address(host="192.0.2.1", port=8000), "192.0.2.1:8000 .*: Cannot assign requested addr"),
        (Address(host="192.0.2.1", port=0), "192.0.2.1:0 .*: Cannot assign requested address"),
        (Address(host="no..name", port=0), "no..name:0 .*: "),
        (Address(host="2001:db8::1", port=7), r"\[2001:db8::1\]:7 "),
    ],
)
def test_the_reason_for_a_port_is_the_real_one(address: Address, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"cannot listen on {says}") as caught:
        settle(address, "router.http")
    assert "(router.http)" in caught.value.message


def test_ipv6_addresses_stand_in_brackets() -> None:
    assert str(Address(host="::1", port=9000)) == "[::1]:9000"
    assert base_url(Address(host="::1", port=80)) == "http://[::1]:80"
    assert base_url(Address(host="::", port=80)) == "http://[::1]:80"
    assert base_url(Address(host="0.0.0.0", port=80)) == "http://127.0.0.1:80"


# -- redis ---------------------------------------------------------------------------------------


async def test_redis_server(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = RedisEndpoint(url=f"redis://127.0.0.1:{port}/0")
    with pytest.raises(ConfigError, match=f"Redis is unreachable at {url}"):
        await check(url)
    server = await Child.start(server_spec(port, tmp_path), tmp_path)
    await wait_until_up(url, 10.0)
    assert await registered(url, "kvasir") == {}
    await server.stop(5.0)
    assert await server.wait() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["redis.conf", "redis.log"]
    assert await registered(url, "kvasir") == {}


@pytest.mark.parametrize(
    "url", ["redis://:sec/ret@h:1", "redis://:secret@[::1", "redis://:secret@h:x"]
)
async def test_redis_url_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="is not a Redis URL") as caught:
        await check(RedisEndpoint(url=url))
    assert "sec" not in caught.value.message
    assert "ret" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:secret@h:1/0", "redis://h:1/0"),
        ("rediss://user:se@cr/et@[::1]:1", "rediss://[::1]:1"),
        ("unix:///r.sock?db=1&password=secret&x=1", "unix:///r.sock?db=1&password=...&x=1"),
        ("redis://h?username=user&password=a@b", "redis://h?username=...&password=..."),
        (":secret@h", "h"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


async def test_an_unreachable_redis_does_not_tell_the_password() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ConfigError, match=f"unreachable at redis://127.0.0.1:{port}/0") as caught:
        await check(RedisEndpoint(url=f"redis://:secret@127.0.0.1:{port}/0"))
    assert "secret" not in caught.value.message


async def test_a_second_cluster_of_the_same_name_is_refused() -> None:
    record = ReplicaRecord(
        id="decode-0",
        incarnation="i",
        address="127.0.0.1:7",
        pool="decode",
        role="decode",
        model="m",
        kv_abi="abi",
        block_size=16,
        context_length=64,
        kv_tokens=64,
    )
    with redis_server() as server:
        secret = server.url.replace("://", "://default:secret@")
        async with redis.asyncio.from_url(server.url) as client:
            await client.config_set("requirepass", "secret")
        async with redis.asyncio.from_url(secret) as client:
            await client.set(replica_key("kvasir", record.id), record.model_dump_json())
            await client.set(replica_key("broken", "x"), "{}")
        at = RedisEndpoint(url=secret)
        assert await registered(at, "kvasir") == {"decode-0": "127.0.0.1:7"}
        await check_unused(at, "other")
        with pytest.raises(ConfigError, match=f"'kvasir' are registered at {server.url}; choose"):
            await check_unused(at, "kvasir")
        with pytest.raises(ConfigError, match="cannot be read; choose another"):
            await check_unused(at, "broken")
