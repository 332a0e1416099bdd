"""Certificates as files that may be replaced while we run, and what is made of them.

Servers look at their files whenever somebody connects. What is at fault then is said once, and the
certificate of before stays in use.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from pathlib import Path

import grpc
import grpc.aio
from pydantic import BaseModel, ConfigDict

from workers.core.errors import ConfigError
from workers.wire.files import stamp

log = logging.getLogger(__name__)


class TlsFiles(BaseModel):
    """PEM files. A server with a `ca` takes only clients that show a certificate of it; a client
    trusts it alone. `name`: what the other side's certificate is for, where it is called by an
    address that is not in there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cert: Path
    key: Path
    ca: Path | None = None
    name: str | None = None

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.cert, self.key, self.ca) if path is not None]


class InternalTls(TlsFiles):
    """Between our own processes both sides show a certificate of `ca`. `name` is in all of them:
    workers are called by addresses."""

    ca: Path
    name: str = "kvasir"


class DoorTls(BaseModel):
    """With `client_ca` clients must show a certificate of it. `name` as in TlsFiles: for our own
    processes, which trust this very certificate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cert: Path
    key: Path
    client_ca: Path | None = None
    name: str | None = None

    @property
    def serving(self) -> TlsFiles:
        return TlsFiles(cert=self.cert, key=self.key, ca=self.client_ca)

    @property
    def calling(self) -> TlsFiles:
        """As our own processes call it."""
        return TlsFiles(cert=self.cert, key=self.key, ca=self.cert, name=self.name)


class ServerTls:
    """Both kinds of servers' certificates. Raises ConfigError for files that do not fit."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamp = stamp(files.paths)
        try:
            self._context = self._load()
            self._config = self._grpc_config()
        except OSError as error:
            raise ConfigError(f"TLS with {_names(files)}: {_why(error)}") from None

    def context(self) -> ssl.SSLContext:
        """For any number of connections; each is shaken hands with by what the files say then.
        Clients may show a certificate, and none but a good one; whether they must is asked later,
        for probes have none."""
        context = self._load()
        context.sni_callback = self._choose
        return context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        told = self._config

        def fetch() -> object | None:
            nonlocal told
            self._look()
            if told is self._config:
                return None
            told = self._config
            return told

        return grpc.dynamic_ssl_server_credentials(
            self._config, fetch, require_client_authentication=self._files.ca is not None
        )

    def _choose(self, connection: ssl.SSLObject, name: str | None, at_first: object) -> None:
        """Called in each handshake, also of clients that name no host."""
        self._look()
        connection.context = self._context

    def _look(self) -> None:
        found = stamp(self._files.paths)
        if found == self._stamp:
            return
        self._stamp = found
        try:
            self._context = self._load()
            self._config = self._grpc_config()
        except OSError as error:  # also half of a pair, while the other half is being written
            log.error("TLS stays as it was, %s: %s", _names(self._files), _why(error))
        else:
            log.info("TLS: new certificates in %s", _names(self._files))

    def _load(self) -> ssl.SSLContext:
        files = self._files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.ca)
        context.load_cert_chain(files.cert, files.key)
        if files.ca is not None:
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _grpc_config(self) -> object:
        files = self._files
        pair = (files.key.read_bytes(), files.cert.read_bytes())
        ca = files.ca.read_bytes() if files.ca is not None else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca)


def client_context(
    ca: Path | str | None = None, cert: Path | str | None = None, key: Path | str | None = None
) -> ssl.SSLContext:
    """Trusts `ca` alone, without it what the system trusts. Raises OSError, which ssl.SSLError is
    too."""
    context = ssl.create_default_context(cafile=ca)
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


class ClientTls:
    """What gRPC channels are made with. A channel keeps what it was made with: who reconnects after
    a break asks again. Raises ConfigError for files that do not fit."""

    def __init__(self, files: TlsFiles) -> None:
        self.name = files.name
        self._files = files
        self._stamp = stamp(files.paths)
        try:
            self._credentials = self._load()
        except OSError as error:
            raise ConfigError(f"TLS with {_names(files)}: {_why(error)}") from None

    def credentials(self) -> grpc.ChannelCredentials:
        """Another object once the files have changed."""
        found = stamp(self._files.paths)
        if found != self._stamp:
            self._stamp = found
            try:
                self._credentials = self._load()
            except OSError as error:
                log.error("TLS stays as it was, %s: %s", _names(self._files), _why(error))
        return self._credentials

    def _load(self) -> grpc.ChannelCredentials:
        files = self._files
        client_context(files.ca, files.cert, files.key)  # which fit, or raise
        return grpc.ssl_channel_credentials(
            root_certificates=files.ca.read_bytes() if files.ca is not None else None,
            private_key=files.key.read_bytes(),
            certificate_chain=files.cert.read_bytes(),
        )


def client_tls(files: TlsFiles | None) -> ClientTls | None:
    return None if files is None else ClientTls(files)


def open_channel(
    address: str, options: Sequence[tuple[str, int | str]], tls: ClientTls | None
) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    if tls.name is not None:
        options = [*options, ("grpc.ssl_target_name_override", tls.name)]
    return grpc.aio.secure_channel(address, tls.credentials(), options=options)


def _names(files: TlsFiles) -> str:
    return ", ".join(str(path) for path in files.paths)


def _why(error: OSError) -> str:
    return (error.strerror or str(error)) + (f": {error.filename}" if error.filename else "")
