"""Who may use an HTTP door: an ASGI app around another one."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from router.doors.http import certified
from router.doors.keys import ApiKeys, Key
from router.gateway.errors import error_response
from workers.core.errors import KvasirError, PermissionDenied, Unauthenticated

OPEN = frozenset({"/health", "/ready", "/metrics"})
BEARER = "Bearer"
# Browsers ask their user for these, so the console needs no page of its own for it.
BASIC = 'Basic realm="kvasir admin: any user, the API key as password"'
_KEY = "kvasir.key"  # where it stands in the scope


class Guard:
    """Lets in who shows a key, where there are `keys`, and a certificate, where `certificates` are
    asked for. For `admin` the key must be an admin's; a browser may send it as a password. OPEN
    paths need neither. `refused` hears of those that were not let in."""

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys | None,
        *,
        certificates: bool = False,
        admin: bool = False,
        refused: Callable[[KvasirError], None] = lambda error: None,
    ) -> None:
        self._app = app
        self._keys = keys
        self._certificates = certificates
        self._admin = admin
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What an outer guard let in was let in: the console chats through the gateway.
        if scope["type"] != "http" or scope["path"] in OPEN or _KEY in scope:
            await self._app(scope, receive, send)
            return
        with ExitStack() as inside:
            try:
                self._let_in(scope, inside)
            except KvasirError as error:
                self._refused(error)
                response = error_response(error)
                if isinstance(error, Unauthenticated):
                    response.headers["www-authenticate"] = BASIC if self._admin else BEARER
                await response(scope, receive, send)
                return
            await self._app(scope, receive, send)

    def _let_in(self, scope: Scope, inside: ExitStack) -> None:
        if self._certificates and not certified(scope):
            raise PermissionDenied("a client certificate is needed here")
        if self._keys is not None:
            key = self._keys.find(self._shown(scope), admin=self._admin)
            inside.enter_context(self._keys.using(key))
            scope[_KEY] = key

    def _shown(self, scope: Scope) -> str | None:
        return shown(Headers(scope=scope).get("authorization", ""), basic=self._admin)


def key_of(scope: Scope) -> Key | None:
    """Whose request it is; None where no keys are asked for."""
    found: Key | None = scope.get(_KEY)
    return found


def shown(authorization: str, *, basic: bool = False) -> str | None:
    """The key in a header's value."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if basic and scheme.lower() == "basic":
        try:
            return base64.b64decode(value).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None
