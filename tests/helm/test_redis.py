"""The bundled Redis as its container starts it: the script of the chart, a real server."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import redis

from tests.helm.conftest import Outcome
from tests.redis_server import free_port, program

AWKWARD = r"""p a"ss'w\ord#%$1"""


@pytest.mark.parametrize("variant", ["default", "redis-locked"])
def test_it_starts_as_the_values_say(outcome: Outcome, variant: str, tmp_path: Path) -> None:
    locked = variant == "redis-locked"
    pod = outcome.variants[variant].get("StatefulSet", "kv-redis")["spec"]["template"]["spec"]
    (script,) = pod["containers"][0]["args"]
    assert ("/etc/kvasir-redis/password" in script) is locked
    (tmp_path / "password").write_text(AWKWARD + "\n")
    port = free_port()
    for there, here in (
        ("/etc/kvasir-redis/password", str(tmp_path / "password")),
        ("/tmp/redis.conf", str(tmp_path / "redis.conf")),
        ("/data", str(tmp_path)),
        ("exec redis-server", f"exec {program()}"),
    ):
        script = script.replace(there, here)
    server = subprocess.Popen(
        ["sh", "-c", f"{script.rstrip()} --port {port} --bind 127.0.0.1"], stdout=subprocess.DEVNULL
    )
    try:
        with redis.Redis(port=port, password=AWKWARD if locked else None) as client:
            _wait(client)
            assert client.config_get("maxmemory") == {"maxmemory": str(512 << 20)}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendonly") == {"appendonly": "yes" if locked else "no"}
        if locked:
            with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
                stranger.ping()
    finally:
        server.terminate()
        server.wait(timeout=20)


def _wait(client: redis.Redis) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            client.ping()
            return
        except redis.ConnectionError:
            assert time.monotonic() < deadline, "no answer"
            time.sleep(0.05)
