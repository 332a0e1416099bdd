"""Logs as JSON: one object a line, which says whose request it is of."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from workers.core.trace import speak_of
from workers.logs import JsonLines

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


def test_an_exception_stays_in_its_line() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    record = log.makeRecord("x", logging.ERROR, "f", 1, "broke", (), caught._excinfo)
    text = JsonLines("router").format(record)
    assert "\n" not in text and "ZeroDivisionError" in json.loads(text)["exception"]
