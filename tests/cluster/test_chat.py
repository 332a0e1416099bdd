"""`kvasir chat` against a made-up server, as if people sat at a terminal."""

from __future__ import annotations

import http.server
import io
import json
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest

from cluster.cli import main
from cluster.endpoint import takes_proxy


class _Handler(http.server.BaseHTTPRequestHandler):
    """Echoes the last message; refuses one that says `refuse`. Shows how many it was sent."""

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"data": [{"id": "m"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        said = [message["content"] for message in body["messages"]]
        if said[-1] == "refuse":
            self._answer(400, json.dumps({"error": {"message": "too long"}}))
            return
        event = {"choices": [{"delta": {"content": f"{len(said)} {said[-1]}"}}]}
        self._answer(200, f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of the server; the environment names a proxy at which nobody listens."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def chat(url: str, monkeypatch: pytest.MonkeyPatch, stdin: io.StringIO) -> int:
    monkeypatch.setattr(sys, "argv", ["kvasir", "chat", f"--url={url}"])
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_refused_turn_does_not_end_the_chat(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(url, monkeypatch, _Terminal("hello\nrefuse\nagain\n")) == 0
    printed = capsys.readouterr()
    assert "1 hello" in printed.out
    assert "3 again" in printed.out  # hello, its answer, again
    assert printed.err == "error: the server answered 400: too long\n"


def test_piped_a_refused_turn_is_the_end(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(url, monkeypatch, io.StringIO("refuse\nagain\n")) == 2
    assert "too long" in capsys.readouterr().err


def test_which_hosts_take_a_proxy() -> None:
    for near in ("http://localhost:1", "http://127.0.0.2", "http://[::1]:8000"):
        assert not takes_proxy(httpx.URL(near))
    for far in ("http://10.0.0.1", "https://example.org", "http://127.0.0.1.example.org"):
        assert takes_proxy(httpx.URL(far))
