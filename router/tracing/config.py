"""What cluster.yaml says of traces and logs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from router.flow.classes import Duration
from workers.core.errors import ConfigError
from workers.logs import LogStyle

_HEADER = re.compile(r"([A-Za-z0-9_.-]+):[ \t]*([\x20-\x7e]+)")


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
    otlp_headers_file: Path | None = Field(
        default=None,
        description="`name: value` a line, which go with every message: a collector's token",
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


def read_headers(path: Path) -> dict[str, str]:
    """Raises ConfigError, whose text never holds what may be a secret."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file") from None
    headers: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = _HEADER.fullmatch(line.strip())
        if found is None:
            raise ConfigError(f"{path}:{number}: expected `name: value`, in ASCII")
        headers[found[1].lower()] = found[2]
    return headers
