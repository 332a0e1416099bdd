"""What cluster.yaml says of traces and logs."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from router.flow.classes import Duration
from workers.logs import LogStyle


def _endpoint(url: str | None) -> str | None:
    if url is None:
        return None
    scheme, slashes, rest = url.partition("://")
    host, colon, port = rest.strip("/").rpartition(":")
    if not (slashes and scheme in ("http", "https") and host and colon and port.isdigit()):
        raise ValueError("expected http://host:port or https://host:port of an OTLP gRPC receiver")
    return f"{scheme}://{host}:{port}"


class TelemetryConfig(BaseModel):
    """Without an endpoint requests still have trace ids, which stand in logs and go to workers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    otlp_endpoint: Annotated[str | None, AfterValidator(_endpoint)] = Field(
        default=None, description="http://host:4317 of an OTLP gRPC receiver; https:// for TLS"
    )
    sample_ratio: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="of requests that come without a trace; those with one follow its flag",
    )
    slow_s: Duration | None = Field(
        default=None, description="a later first token is traced whatever the ratio says"
    )
    logs: LogStyle = "text"
