"""Where Redis is and how to get in: the `redis` section of cluster.yaml, and what each process is
told of it. Passwords stay in their files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from workers.wire.redis_keys import without_password

SCHEMES = ("redis://", "rediss://", "unix://")
Node = tuple[str, int]  # host and port


def _checked_url(url: str | None) -> str | None:
    if url is not None and not url.startswith(SCHEMES):
        raise ValueError("expected a URL that begins with redis://, rediss:// or unix://")
    return url


def _checked_host(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("expected host:port")
    return text


Host = Annotated[str, AfterValidator(_checked_host)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Nodes(_Section):
    hosts: tuple[Host, ...] = Field(min_length=1, description="host:port of some, tried in turn")

    @property
    def nodes(self) -> list[Node]:
        parts = (text.rpartition(":") for text in self.hosts)
        return [(host.strip("[]"), int(port)) for host, _, port in parts]


class RedisSentinel(_Nodes):
    """Sentinels know which server is the master of `service` now. User and password are theirs."""

    service: str = Field(min_length=1)
    username: str | None = None
    password_file: Path | None = None


class RedisCluster(_Nodes):
    """A Redis Cluster. Any of its nodes says where our slot is."""


class RedisEndpoint(_Section):
    """One of `url`, `sentinel` and `cluster`; none of them: no server is named. A plain URL is
    short for {url}.

    Files are read again with each connection, so a new password or certificate needs no restart.
    """

    url: Annotated[str | None, AfterValidator(_checked_url)] = None
    sentinel: RedisSentinel | None = None
    cluster: RedisCluster | None = None
    username: str | None = None
    password_file: Path | None = None
    tls: bool = False
    ca: Path | None = Field(default=None, description="PEM; None = what the system trusts")
    cert: Path | None = Field(default=None, description="for servers that ask clients for one")
    key: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        ways = [name for name in ("url", "sentinel", "cluster") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} are different ways; name one")
        if self.username is not None and self.password_file is None:
            raise ValueError("username needs a password_file")
        if (self.cert is None) is not (self.key is None):
            raise ValueError("cert and key go together")
        if (self.ca or self.cert) and not self.uses_tls:
            raise ValueError("ca, cert and key are for TLS: say `tls: true`")
        if self.tls and (self.url or "").startswith("unix://"):
            raise ValueError("a unix:// socket has no TLS")
        if self.password_file is not None and self.url and without_password(self.url) != self.url:
            raise ValueError("url has a user or a password, and so has password_file; name one")
        return self

    @property
    def given(self) -> bool:
        """Whether a server is named."""
        return (self.url, self.sentinel, self.cluster) != (None, None, None)

    @property
    def uses_tls(self) -> bool:
        return self.tls or (self.url or "").startswith("rediss://")

    def __str__(self) -> str:
        """As people may see it, without user and password."""
        if self.sentinel is not None:
            return f"{self.sentinel.service} of the Sentinels {', '.join(self.sentinel.hosts)}"
        if self.cluster is not None:
            return f"the Redis Cluster {', '.join(self.cluster.hosts)}"
        return without_password(self.url or "nowhere")
