"""Who may come in: a file with the hashes of API keys, read again when it changes.

A line is `SHA256 TENANT`, and after it, if wanted, `role=admin`, `classes=a,b` and `requests=N`;
`#` begins a comment. Keys are long and random, so a plain hash is as good as a slow one.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from router.api import Call, Terms
from workers.core.clock import Clock
from workers.core.errors import ConfigError, Overloaded, PermissionDenied, Unauthenticated
from workers.wire.files import stamp

log = logging.getLogger(__name__)

PREFIX = "kv-"
LOOK_EVERY_S = 1.0
RETRY_S = 1.0  # what a tenant at its limit is told
MOST_LENGTH = 512  # of what is hashed
_LINE = re.compile(r"([0-9a-fA-F]{64})\s+([^\s=#]{1,256})((?:\s+[^\s=]+=\S+)*)")


class ApiKeysConfig(BaseModel):
    """`admin_key_file`: holds one key as it is, not hashed: what our own processes (planner,
    `kvasir serve`) show to the admin service. It needs no line in `file`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path
    admin_key_file: Path | None = None
    private_cache: bool = Field(
        default=False, description="no tenant hits what another one's prompts left in the cache"
    )


@dataclass(frozen=True, slots=True)
class Key:
    """`classes`: the only ones it may name, the first where it names none; () = any. `requests`: at
    most so many at once."""

    digest: bytes
    tenant: str
    admin: bool = False
    classes: tuple[str, ...] = ()
    requests: int | None = None
    private_cache: bool = False

    def terms(self, asked: Terms) -> Terms:
        """Whatever the client says, the tenant is the key's. Raises PermissionDenied."""
        wanted = asked.slo_class
        if wanted is None and self.classes:
            wanted = self.classes[0]
        elif wanted is not None and self.classes and wanted not in self.classes:
            raise PermissionDenied(
                f"this API key is for the service class {' or '.join(self.classes)}, not {wanted}"
            )
        return replace(asked, tenant=self.tenant, slo_class=wanted)

    def call(self, asked: Call) -> Call:
        """As it is allowed. Raises PermissionDenied."""
        salt = asked.cache_salt  # requests of one salt share what is cached
        if self.private_cache:
            salt = f"{len(self.tenant)}:{self.tenant}:{salt}"
        return replace(asked, terms=self.terms(asked.terms), cache_salt=salt)


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()


def new_secret() -> str:
    """256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


class ApiKeys:
    """The keys that are valid now. Raises ConfigError for files that cannot be read at start; one
    that is at fault later is said and ignored."""

    def __init__(self, config: ApiKeysConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._paths = [path for path in (config.file, config.admin_key_file) if path is not None]
        self._stamp = stamp(self._paths)
        self._keys = self._read()
        self._look_at = clock.now() + LOOK_EVERY_S
        self._open: Counter[bytes] = Counter()

    def find(self, secret: str | None, *, admin: bool = False) -> Key:
        """Raises Unauthenticated, and PermissionDenied where it must be an admin's."""
        if not secret:
            raise Unauthenticated("no API key: send it as `Authorization: Bearer KEY`")
        self._look()
        digest = digest_of(secret[:MOST_LENGTH])
        key = self._keys.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            raise Unauthenticated("the API key is not valid")
        if admin and not key.admin:
            raise PermissionDenied("this API key is not an admin's")
        return key

    @contextmanager
    def using(self, key: Key) -> Iterator[None]:
        """While a request of it is under way. Raises Overloaded."""
        if key.requests is not None and self._open[key.digest] >= key.requests:
            raise Overloaded(
                f"this API key has {key.requests} requests under way, the most that it may",
                retry_after_s=RETRY_S,
            )
        self._open[key.digest] += 1
        try:
            yield
        finally:
            self._open[key.digest] -= 1
            if not self._open[key.digest]:
                del self._open[key.digest]

    def _look(self) -> None:
        now = self._clock.now()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY_S
        found = stamp(self._paths)
        if found == self._stamp:
            return
        self._stamp = found
        try:
            self._keys = self._read()
        except ConfigError as error:
            log.error("%s; the keys of before stay valid", error.message)
        else:
            log.info("%s: %d API keys", self._config.file, len(self._keys))

    def _read(self) -> dict[bytes, Key]:
        keys = read_keys(self._config.file)
        own = self._config.admin_key_file
        if own is not None:
            digest = digest_of(read_secret(own))
            keys[digest] = Key(digest, "admin", admin=True)
        private = self._config.private_cache
        return {digest: replace(key, private_cache=private) for digest, key in keys.items()}


def read_keys(path: Path) -> dict[bytes, Key]:
    """By their hashes. Raises ConfigError that names the line."""
    keys: dict[bytes, Key] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        stripped = line.partition("#")[0].strip()
        if not stripped:
            continue
        try:
            key = parse_key(stripped)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}") from None
        if key.digest in keys:
            raise ConfigError(f"{path}:{number}: this key stands here twice")
        keys[key.digest] = key
    return keys


def read_secret(path: Path) -> str:
    """A key as it is. Raises ConfigError."""
    secret = _text(path).strip()
    if not secret:
        raise ConfigError(f"{path} is empty; it must hold an API key")
    return secret


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file") from None


def parse_key(line: str) -> Key:
    """Raises ValueError, whose text never holds what might be a key."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise ValueError("expected the SHA-256 of a key in hex, a tenant, and name=value options")
    digest, tenant, rest = found.groups()
    options = dict(option.split("=", 1) for option in rest.split())
    role = options.pop("role", "user")
    classes = options.pop("classes", "")
    requests = options.pop("requests", None)
    if options:
        raise ValueError(f"unknown option {min(options)!r}; known: role, classes, requests")
    if role not in ("user", "admin"):
        raise ValueError(f"role is {role!r}; it must be user or admin")
    if requests is not None and not (requests.isdecimal() and int(requests) > 0):
        raise ValueError(f"requests is {requests!r}; it must be an integer above 0")
    return Key(
        bytes.fromhex(digest),
        tenant,
        admin=role == "admin",
        classes=tuple(filter(None, classes.split(","))),
        requests=None if requests is None else int(requests),
    )
