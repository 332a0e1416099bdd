"""Traces on their way to receivers that want more than an address, or give less than an answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from load_tests.bench_tracing import play
from router.tracing.config import TelemetryConfig, read_headers
from router.tracing.start import tracing
from tests.certificates import Authority
from tests.telemetry.receiver import receiver
from workers.core.clock import SystemClock
from workers.core.errors import ConfigError

CLOCK = SystemClock()
SECRET = "Bearer s3cr3t: of the collector"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, who answers has the time for it."""
    monkeypatch.setattr("router.tracing.otlp.LAST_WORDS_S", 60.0)


def outcomes(registry: CollectorRegistry) -> dict[str, float]:
    """Those that are not 0."""
    said = ("sent", "refused", "dropped")
    found = {o: registry.get_sample_value("kvasir_traces_total", {"outcome": o}) for o in said}
    return {outcome: count for outcome, count in found.items() if count}


async def export(endpoint: str, count: int = 1, headers: Path | None = None) -> dict[str, float]:
    """What became of so many traces when the router has ended."""
    config = TelemetryConfig(otlp_endpoint=endpoint, sample_ratio=1.0, otlp_headers_file=headers)
    registry = CollectorRegistry()
    async with tracing(config, CLOCK, registry, cluster="test", port=1) as tracer:
        play(tracer, CLOCK, count)
    return outcomes(registry)


async def test_what_waits_at_the_end_is_sent() -> None:
    with receiver() as (got, endpoint):
        assert await export(endpoint, count=40) == {"sent": 40}  # more than one message
        assert len(got.traces) == 40
        sizes = {len(got.tree(trace).spans) for trace in got.traces}
    assert len(sizes) == 1 and sizes.pop() > 10


async def test_resources_say_who_made_a_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=lab,service.name=no")
    with receiver() as (got, endpoint):
        await export(endpoint)
        tree = got.tree(*got.traces)
    for name, service in (("prefill", "kvasir-worker"), ("attempt", "kvasir-router")):
        said = tree.one(name).resource
        assert said["service.name"] == service and said["service.namespace"] == "test"
        assert said["deployment.environment"] == "lab"
        assert said["telemetry.sdk.name"] == "opentelemetry"
    assert tree.one("prefill").resource["service.instance.id"] == "prefill-0"
    assert tree.one("attempt").resource["service.instance.id"].endswith(":1")


async def test_headers_of_a_file_go_with_every_message(tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_text(f"Authorization: {SECRET}\n\nx-scope: kvasir\n")
    with receiver() as (got, endpoint):
        assert await export(endpoint, headers=path) == {"sent": 1}
        assert got.metadata["authorization"] == SECRET and got.metadata["x-scope"] == "kvasir"


async def test_headers_of_the_environment_go_where_there_is_no_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3cr3t")
    with receiver() as (got, endpoint):
        assert await export(endpoint) == {"sent": 1}
        assert got.metadata["api-key"] == "s3cr3t"


@pytest.mark.parametrize("text", ["authorization=s3cr3t", "s3cr3t", "name: s3cr3t\x00", "a b: c"])
def test_what_is_no_header_is_refused_without_being_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_text(f"fine: yes\n{text}\n")
    with pytest.raises(ConfigError, match="headers:2: expected `name: value`") as caught:
        read_headers(path)
    assert "s3cr3t" not in caught.value.message
    with pytest.raises(ConfigError, match="cannot read .*: No such file"):
        read_headers(tmp_path / "none")


async def test_a_receiver_with_an_authority_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Authority(tmp_path)
    cert, key = ours.sign("collector")
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    with receiver(credentials) as (_, endpoint):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(ours.ca))
        assert await export(endpoint) == {"sent": 1}


async def test_a_receiver_that_is_busy_is_asked_again() -> None:
    with receiver() as (got, endpoint):
        got.refusals = [grpc.StatusCode.UNAVAILABLE]
        config = TelemetryConfig(otlp_endpoint=endpoint, sample_ratio=1.0)
        registry = CollectorRegistry()
        async with tracing(config, CLOCK, registry, cluster="test", port=1) as tracer:
            play(tracer, CLOCK, 1)
            async with asyncio.timeout(60):
                while not outcomes(registry):
                    await asyncio.sleep(0.05)
            assert outcomes(registry) == {"sent": 1} and len(got.traces) == 1


@contextmanager
def silent() -> Iterator[str]:
    """The endpoint of one that lets everybody connect and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


async def test_a_receiver_that_never_answers_does_not_hold_the_end_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.tracing.otlp.LAST_WORDS_S", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")  # longer than any test may take
    with silent() as endpoint:
        assert await export(endpoint, count=40) == {"refused": 40}


async def test_of_a_flood_whole_traces_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.tracing.otlp.MOST_WAITING", 4096)
    monkeypatch.setattr("router.tracing.otlp.LAST_WORDS_S", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1000")
    registry = CollectorRegistry()
    with silent() as endpoint:
        config = TelemetryConfig(otlp_endpoint=endpoint, sample_ratio=1.0)
        async with tracing(config, CLOCK, registry, cluster="test", port=1) as tracer:
            played = 0
            while not outcomes(registry):
                play(tracer, CLOCK, 100)
                played += 100
            dropped = outcomes(registry)["dropped"]
            assert dropped < 100
    assert outcomes(registry) == {"dropped": dropped, "refused": played - dropped}
