"""`kvasir flip`: a replica gets another role, and keeps its weights and what it has cached."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from cluster.access import Access, ApiKey, Ca, Cert
from cluster.admin_client import AdminClient
from cluster.commands.status import DEFAULT_ROUTER
from workers.core.errors import ConfigError
from workers.core.roles import RoleName
from workers.wire.codec import role_from_wire, role_to_wire


def flip(
    replica: Annotated[str, typer.Argument(help="its name, as `kvasir status` shows it")],
    role: Annotated[str, typer.Argument(help="prefill, decode or aggregated")],
    router: Annotated[str, typer.Option(help="gRPC address")] = DEFAULT_ROUTER,
    api_key: ApiKey = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Change what a replica does. Its running sequences move to others, or end where they are."""
    for name in get_args(RoleName):
        if name == role:
            with AdminClient(router, Access(api_key, ca, cert)) as client:
                was = client.set_role(replica, role_to_wire(name))
            print(f"{replica}: {role}, was {role_from_wire(was)}")
            return
    raise ConfigError(f"no role {role!r}; there are {', '.join(get_args(RoleName))}")
