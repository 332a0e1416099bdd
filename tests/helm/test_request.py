"""The script behind `helm test`, against the real gateway."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from router.gateway.app import create_app
from tests.helm.conftest import Outcome
from tests.helm.variants import CHART
from tests.router.fake_generator import FakeGenerator, serving

SCRIPT = CHART / "files" / "request.py"


async def _run(*args: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT.read_text(), *args,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_it_sends_a_request_and_prints_the_answer(tmp_path: Path) -> None:
    generator = FakeGenerator("Pa", "ris")
    app = create_app(generator, ready=lambda: True, max_body_bytes=100_000)
    (tmp_path / "key").write_text("kv-secret\n")
    async with serving(app) as address:
        code, said = await _run(address, str(tmp_path / "key"), "")
    assert code == 0, said
    assert "'Paris'" in said and len(generator.calls) == 1


@pytest.mark.parametrize("ready", [True, False])
async def test_it_fails_where_there_is_no_answer(ready: bool) -> None:
    generator = FakeGenerator("")
    app = create_app(generator, ready=lambda: ready, max_body_bytes=10)  # refuses the body
    async with serving(app) as address:
        code, _ = await _run(address, "", "")
    assert code != 0


def test_the_pod_runs_it_with_the_addresses_of_its_release(outcome: Outcome) -> None:
    for variant, arguments in (
        ("default", ["http://kv.serving.svc:8000", "", ""]),
        ("h100x8-70b", ["https://kv.serving.svc:8000", "", "/etc/kvasir-tls/ca.crt"]),
        (
            "monitored",
            [
                "https://kv.serving.svc:8000",
                "/etc/kvasir-test/key",
                "/etc/kvasir-tls/ca.crt",
                "/etc/kvasir-tls/tls.crt",
                "/etc/kvasir-tls/tls.key",
            ],
        ),
    ):
        pod = outcome.variants[variant].get("Pod", "kv-test")
        assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
        (container,) = pod["spec"]["containers"]
        script, *args = container["args"]
        assert script.strip() == SCRIPT.read_text().strip()
        assert args == arguments
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {str(Path(path).parent) for path in arguments[1:] if path} <= mounts
