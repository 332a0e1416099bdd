"""Logs as JSON: one object a line, which says whose request it is of."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from workers.core.trace import speak_of
from workers.decode_server import DecodeServer
from workers.logs import JsonLines
from workers.parallel.launcher import TOKEN
from workers.wire import worker_pb2 as worker

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
log = logging.getLogger("kvasir.test")


def line(*args: object, **more: object) -> dict[str, str]:
    record = log.makeRecord("kvasir.test", logging.WARNING, "f", 1, *args, None, **more)
    return json.loads(JsonLines("router").format(record))


def test_a_line_says_what_was_said_when_and_by_whom() -> None:
    said = line("%s again:\n%s", ("prefill", "gone"))
    assert said.pop("time").endswith("+00:00")
    assert said == {
        "level": "warning",
        "logger": "kvasir.test",
        "process": "router",
        "message": "prefill again:\ngone",
    }


async def test_tasks_speak_of_their_own_requests() -> None:
    async def speak(request: str, traceparent: str) -> dict[str, str]:
        speak_of(request, traceparent)
        await asyncio.sleep(0)
        return line("hello", ())

    one, two = await asyncio.gather(
        speak("r1", f"00-{TRACE}-{SPAN}-01"), speak("r2", "not a traceparent")
    )
    assert (one["request_id"], one["trace_id"], one["span_id"]) == ("r1", TRACE, SPAN)
    assert two["request_id"] == "r2" and "trace_id" not in two
    assert "request_id" not in line("hello", ())


async def test_what_a_worker_says_of_one_of_a_streams_calls_has_its_ids() -> None:
    said, over = io.StringIO(), asyncio.Event()
    handler = logging.StreamHandler(said)
    handler.setFormatter(JsonLines("decode-0"))

    async def broken(request: worker.DecodeRequest) -> AsyncIterator[worker.DecodeEvent]:
        raise RuntimeError("a bug")
        yield

    async def starts() -> AsyncIterator[worker.DecodeCall]:
        for number, span in enumerate((SPAN, SPAN[::-1]), start=1):
            spec = worker.SequenceSpec(request_id=f"r{number}", traceparent=f"00-{TRACE}-{span}-01")
            yield worker.DecodeCall(call=number, start=worker.DecodeRequest(sequence=spec))
        await over.wait()

    async def write(step: worker.DecodeStep) -> None:
        pass

    logging.getLogger("workers").addHandler(handler)
    try:
        async with asyncio.timeout(10):
            serving = asyncio.create_task(DecodeServer(broken, write, 8).serve(starts(), over))
            while len(said.getvalue().splitlines()) < 2:
                await asyncio.sleep(0)
            over.set()
            await serving
    finally:
        logging.getLogger("workers").removeHandler(handler)
    lines = [json.loads(text) for text in said.getvalue().splitlines()]
    found = {line["request_id"]: (line["trace_id"], line["span_id"]) for line in lines}
    assert found == {"r1": (TRACE, SPAN), "r2": (TRACE, SPAN[::-1])}
    assert all("RuntimeError" in line["exception"] for line in lines)


def test_an_exception_stays_in_its_line() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    record = log.makeRecord("x", logging.ERROR, "f", 1, "broke", (), caught._excinfo)
    text = JsonLines("router").format(record)
    assert "\n" not in text and "ZeroDivisionError" in json.loads(text)["exception"]


def test_a_rank_writes_objects_too_and_says_which_it_is() -> None:
    """A real one, whose leader is not there."""
    module = ("-m", "workers.parallel.follower", "--rank", "1", "--leader", "127.0.0.1:1")
    voice = ("--parent", str(os.getpid()), "--logs", "json", "--replica", "prefill-0")
    env = {**os.environ, TOKEN: "none"}
    done = subprocess.run(
        [sys.executable, *module, *voice], env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    (said,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (said["process"], said["rank"], said["level"]) == ("prefill-0", 1, "error")
    assert "does not reach its leader" in said["message"]
