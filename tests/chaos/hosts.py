"""Machines that freeze, thaw and die, many of them on one event loop in virtual time.

Every callback runs in a context that says whose it is. Those of a frozen host are parked until it
thaws: its timers then fire late, as after SIGSTOP and SIGCONT. A killed host is frozen for ever: no
`finally` of it runs, until bury() clears it away when all has been looked at.
"""

from __future__ import annotations

import asyncio
import weakref
from asyncio import events
from collections.abc import Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

from workers.core.clock import Deadlock, VirtualLoop

HOST: ContextVar[Host | None] = ContextVar("host", default=None)


class Host:
    """One process. `life` counts the starts of the same name."""

    def __init__(self, name: str, life: int = 1) -> None:
        self.name = name
        self.life = life
        self.frozen = False
        self.dead = False
        self.parked: list[asyncio.Handle] = []
        self.tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._kept: list[asyncio.Task[Any]] = []
        self._context = copy_context()
        self._context.run(HOST.set, self)

    def __repr__(self) -> str:
        return f"{self.name}.{self.life}"

    @property
    def context(self) -> Context:
        return self._context.copy()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str = "") -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(
            work, name=name or f"{self}", context=self.context
        )

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        if not self.dead:
            self._wake()

    def kill(self) -> None:
        self.frozen = self.dead = True
        self._kept = [task for task in self.tasks if not task.done()]

    def pending(self) -> list[asyncio.Task[Any]]:
        return [task for task in self.tasks if not task.done()]

    async def bury(self) -> None:
        """End what is left of it, for the garbage collector's sake."""
        self._wake()
        for task in self._kept:
            task.cancel()
        if self._kept:
            await asyncio.wait(self._kept, timeout=60)
        self._kept = []

    def _wake(self) -> None:
        self.frozen = False
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ChaosLoop)
        loop.ready_again(self.parked)
        self.parked = []


def here() -> Host:
    """Whose code this is."""
    host = HOST.get()
    assert host is not None
    return host


class _Gate:
    """Of a handle: waits while its host is frozen."""

    __slots__ = ()

    def _run(self) -> None:
        host = self._context.get(HOST)  # type: ignore[attr-defined]
        if host is not None and host.frozen:
            host.parked.append(self)
        else:
            super()._run()  # type: ignore[misc]


class _Soon(_Gate, events.Handle):
    __slots__ = ()


class _At(_Gate, events.TimerHandle):
    __slots__ = ()


class _Task(asyncio.Task[Any]):
    """Sets of tasks are walked in the order of their hashes: numbers, not addresses, so that a seed
    plays the same everywhere."""

    def __init__(self, number: int, coro: Any, **options: Any) -> None:
        self._number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class _Future(asyncio.Future[Any]):
    def __init__(self, number: int, **options: Any) -> None:
        self._number = number
        super().__init__(**options)

    def __hash__(self) -> int:
        return self._number


class ChaosLoop(VirtualLoop):
    """A VirtualLoop whose callbacks belong to hosts. It has no sockets to look at."""

    def __init__(self) -> None:
        self._made = 0
        super().__init__()
        self._selector.select = self._jump  # type: ignore[attr-defined]

    def _jump(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Deadlock("virtual time has no next event")
        self._jumping.now += timeout
        return []

    def _call_soon(self, callback: Any, args: Any, context: Context | None) -> events.Handle:
        handle = super()._call_soon(callback, args, context)  # type: ignore[misc]
        handle.__class__ = _Soon
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = super().call_at(when, callback, *args, context=context)
        handle.__class__ = _At
        return handle

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> Any:
        self._made += 1
        task = _Task(self._made, coro, loop=self, name=name, context=context)
        host = HOST.get() if context is None else context.get(HOST)
        if host is not None:
            host.tasks.add(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        self._made += 1
        return _Future(self._made, loop=self)

    def ready_again(self, handles: list[asyncio.Handle]) -> None:
        self._ready.extend(handles)  # type: ignore[attr-defined]
