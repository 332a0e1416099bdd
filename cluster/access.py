"""What a client of the router shows, and whom it trusts: options of our commands, and the access
that our own processes have."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import grpc
import typer

from router.doors.keys import ApiKeysConfig, read_secret
from workers.core.errors import ConfigError
from workers.wire.tls import DoorTls, client_context

Options = list[tuple[str, int | str]]
HTTPS = "https://"
KEY_VARIABLE = "KVASIR_API_KEY"
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", envvar=KEY_VARIABLE, help="where the router asks for keys"),
]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", envvar="KVASIR_CA", help="speak TLS and trust this authority (PEM)"),
]
Cert = Annotated[
    Path | None,
    typer.Option(
        "--cert", envvar="KVASIR_CERT", help="certificate and key in one file, where asked for"
    ),
]


@dataclass(frozen=True, slots=True)
class Access:
    """PEM files. gRPC speaks TLS with a `ca`, or to `https://host:port`; `name`: what is in the
    router's certificate, where it is called by another one."""

    api_key: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    name: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(self.headers.items())

    def credentials(self, address: str) -> grpc.ChannelCredentials | None:
        """For gRPC; None: no TLS. Raises ConfigError."""
        if self.ca is None and not address.startswith(HTTPS):
            return None
        try:
            ca = self.ca.read_bytes() if self.ca is not None else None
            cert = self.cert.read_bytes() if self.cert is not None else None
            key = self.key.read_bytes() if self.key is not None else cert
        except OSError as error:
            raise ConfigError(f"TLS: cannot read {error.filename}: {error.strerror}") from None
        return grpc.ssl_channel_credentials(ca, key, cert)

    def options(self, options: Options) -> Options:
        """And the name that the router's certificate is for."""
        if self.name is None:
            return options
        return [*options, ("grpc.ssl_target_name_override", self.name)]

    def context(self) -> ssl.SSLContext:
        """For HTTP. Raises ConfigError."""
        try:
            context = client_context(self.ca, self.cert, self.key)
        except OSError as error:
            raise ConfigError(f"TLS: {error}") from None
        if self.ca is not None and self.ca == self.cert:  # this very one, whatever it is called
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


NOTHING = Access()


def own_access(tls: DoorTls | None, keys: ApiKeysConfig | None) -> Access:
    """That of a process of the cluster itself: it shows the key in `admin_key_file`, else the one
    in the environment, and trusts no other certificate than the router's. Raises ConfigError."""
    secret = os.environ.get(KEY_VARIABLE)
    if keys is not None and keys.admin_key_file is not None:
        secret = read_secret(keys.admin_key_file)
    if tls is None:
        return Access(secret)
    return Access(secret, ca=tls.cert, cert=tls.cert, key=tls.key, name=tls.name)
