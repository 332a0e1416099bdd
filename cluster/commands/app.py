"""All commands under one roof. Importing this takes a while: it brings everything they need."""

from __future__ import annotations

import typer

from cluster.commands import bench, containers, explain, key, simulate
from cluster.commands.chat import chat
from cluster.commands.deploy import deploy
from cluster.commands.flip import flip
from cluster.commands.fsck import fsck
from cluster.commands.plan import plan
from cluster.commands.planner import planner
from cluster.commands.record import record
from cluster.commands.scale import scale
from cluster.commands.serve import serve
from cluster.commands.size import size
from cluster.commands.status import status
from cluster.commands.tickets import tickets

app = typer.Typer(
    help="KV-aware serving, inference and routing of large language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(chat)
app.command()(status)
app.command()(tickets)
app.command()(fsck)
app.command()(flip)
app.command()(scale)
app.command()(deploy)
app.command()(planner)
app.command()(record)
app.command()(size)
app.command()(plan)
app.add_typer(key.app, name="key")
app.add_typer(containers.app)
app.add_typer(bench.app, name="bench")
app.add_typer(explain.app, name="explain")
app.add_typer(simulate.app, name="simulate")
