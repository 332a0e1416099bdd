"""What a replica on Ray answers when Serve asks for its health; without a Ray."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import app
from cluster.backends.own_loop import OwnLoop
from workers.core.errors import Unavailable


class Replica(app.WorkerReplica.func_or_class):  # type: ignore[misc, name-defined]
    def __del__(self) -> None:
        """Nobody here awaits one."""


def replica() -> Any:
    """One that serves, without an engine."""
    made: Any = object.__new__(Replica)
    made._own = OwnLoop("test")
    made._life = Future()
    made._worker = Future()
    made._worker.set_result(SimpleNamespace(hung=asyncio.Event()))
    made._config = SimpleNamespace(replica="decode-x")
    return made


async def test_it_answers_while_its_engine_works() -> None:
    made = replica()
    working = threading.Event()
    made._own.run(asyncio.to_thread(working.wait, 10.0))
    await made.check_health()
    working.set()


async def test_a_loop_that_has_no_turn_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BEAT_S", 0.1)
    made = replica()
    blocked = threading.Event()

    async def block() -> None:
        blocked.wait(10.0)

    made._own.run(block())
    with pytest.raises(Unavailable, match="nothing moves"):
        await made.check_health()
    blocked.set()
    monkeypatch.setattr(app, "BEAT_S", 10.0)
    await made.check_health()


async def test_a_step_that_never_ends_is_noticed() -> None:
    made = replica()
    made._worker.result().hung.set()
    with pytest.raises(Unavailable, match="a step does not end"):
        await made.check_health()


async def test_a_dead_engine_is_noticed_with_its_reason() -> None:
    made = replica()
    made._life.set_exception(Unavailable("rank 1 is lost"))
    with pytest.raises(Unavailable, match="rank 1 is lost"):
        await made.check_health()
