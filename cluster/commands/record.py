"""`kvasir record`: a live cluster's arrivals as a trace, without a word of what was said."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from cluster.access import Access, ApiKey, Ca, Cert
from cluster.commands.status import DEFAULT_ROUTER
from cluster.recording import JsonLines, Recorder

Out = Annotated[Path, typer.Option(help="a new file of JSON lines; .gz is packed")]
Steps = Annotated[Path | None, typer.Option(help="another one, for the steps that workers measure")]
Duration = Annotated[float | None, typer.Option(min=0.1, help="seconds; without it until Ctrl-C")]
Routers = Annotated[list[str], typer.Option("--router", help="gRPC address; once for each router")]


def record(
    out: Out,
    steps: Steps = None,
    duration: Duration = None,
    router: Routers = [DEFAULT_ROUTER],  # noqa: B006
    api_key: ApiKey = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Save what arrives as a trace that `kvasir simulate` and `kvasir bench serve` read: when it
    came, how long it and its answer were, which prefixes it shares, what became of it. Prompts and
    answers are not in it, nor anything that they could be found out from."""
    with ExitStack() as files:
        requests = files.enter_context(JsonLines(out))
        measured = files.enter_context(JsonLines(steps)) if steps is not None else None
        recorder = Recorder(requests, measured, Access(api_key, ca, cert))
        asyncio.run(_record(recorder, router, duration))
    what = ", ".join(f"{count} {name}" for name, count in sorted(recorder.outcomes.items()))
    print(f"{requests.count} requests in {out} ({what or 'nobody asked for anything'})")
    if measured is not None:
        print(f"{measured.count} steps in {steps}")
    if recorder.guessed:
        print(f"{recorder.guessed} were not let in: their answers are as long as usual ones")
    if recorder.lost:
        print(f"{recorder.lost} rows are missing: this was too slow for them")
    if recorder.gaps:
        print(f"{recorder.gaps} times a router was not heard for a while")


async def _record(recorder: Recorder, routers: list[str], duration: float | None) -> None:
    heard = asyncio.Event()
    running = asyncio.ensure_future(recorder.run(routers, heard))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    starting = asyncio.ensure_future(heard.wait())
    await asyncio.wait((running, starting), return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()
    if heard.is_set():
        print(f"recording {', '.join(routers)}", flush=True)
        await asyncio.wait((running,), timeout=duration)
        running.cancel()
    with suppress(asyncio.CancelledError):
        await running
