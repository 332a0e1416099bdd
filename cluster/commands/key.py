"""`kvasir key`: API keys for the router's doors."""

from __future__ import annotations

from typing import Annotated

import typer

from router.doors.keys import digest_of, new_secret, parse_key
from workers.core.errors import InvalidRequest

app = typer.Typer(help="API keys for the router's doors.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `new` a command of its own, though it is the only one."""


@app.command()
def new(
    tenant: Annotated[str, typer.Argument(help="whose key it is; requests count as this tenant's")],
    admin: Annotated[bool, typer.Option("--admin", help="for the admin door too")] = False,
    classes: Annotated[
        str | None,
        typer.Option(help="the only service classes it may name, a,b; the first if none"),
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="at once, at most")] = None,
) -> None:
    """Make a key. It is printed this once; the line for the file of `router.api_keys` has only its
    hash."""
    secret = new_secret()
    options = ["role=admin"] if admin else []
    options += [f"classes={classes}"] if classes else []
    options += [f"requests={requests}"] if requests else []
    line = " ".join([digest_of(secret).hex(), tenant, *options])
    try:
        parse_key(line)
    except ValueError as error:  # a tenant with a space, for one
        raise InvalidRequest(f"tenant {tenant!r}: {error}") from None
    typer.echo(f"key:   {secret}\nline:  {line}")
