"""Commands that containers run. Asked for, they come without the others: what starts or stops a pod
shall not wait for what only people's commands need."""

from __future__ import annotations

import typer

from cluster.commands.drain import drain
from cluster.commands.router import router
from cluster.commands.worker import worker

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(worker)
app.command()(router)
app.command()(drain)
