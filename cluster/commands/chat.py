"""`kvasir chat`: talk to a served model in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import typer

from cluster.access import Access, ApiKey, Ca, Cert
from cluster.endpoint import parse_url, takes_proxy
from workers.core.errors import InvalidRequest, KvasirError, Unavailable

Message = dict[str, str]


def chat(
    url: Annotated[str, typer.Option(help="any OpenAI endpoint")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="without it the first one served")] = None,
    system: Annotated[str | None, typer.Option(help="a system message")] = None,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1)] = 512,
    api_key: ApiKey = None,
    ca: Ca = None,
    cert: Cert = None,
) -> None:
    """Chat over several turns. Ctrl-C ends an answer, Ctrl-D leaves; piped: one turn a line."""
    address, timeout = parse_url(url), httpx.Timeout(60.0, connect=5.0)
    interactive = sys.stdin.isatty()
    access = Access(api_key, ca, cert)
    with httpx.Client(
        base_url=address,
        timeout=timeout,
        trust_env=takes_proxy(address),
        headers=access.headers,
        verify=access.context(),
    ) as client:
        name = model or _first_model(client)
        options = {"model": name, "temperature": temperature, "max_tokens": max_tokens}
        messages = [{"role": "system", "content": system}] if system else []
        if interactive:
            print(f"{name} at {url}. Ctrl-C ends an answer, Ctrl-D leaves.")
        for question in _questions(interactive):
            messages.append({"role": "user", "content": question})
            try:
                answer = _print_answer(client, options, messages)
            except KvasirError as error:
                if not interactive:
                    raise
                print(f"error: {error}", file=sys.stderr)
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": answer})


def _questions(interactive: bool) -> Iterator[str]:
    """Lines that are not empty, until the end of the input."""
    while True:
        try:
            line = input("\n> " if interactive else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)")
            continue
        if line.strip():
            yield line.strip()


def _print_answer(client: httpx.Client, options: dict[str, Any], messages: list[Message]) -> str:
    """Streams the answer to stdout. Ctrl-C closes the stream, which cancels the request."""
    parts: list[str] = []
    try:
        for part in _stream(client, {**options, "messages": messages, "stream": True}):
            parts.append(part)
            print(part, end="", flush=True)
    except KeyboardInterrupt:
        print(" [interrupted]", end="")
    print(flush=True)
    return "".join(parts)


def _stream(client: httpx.Client, body: dict[str, Any]) -> Iterator[str]:
    try:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            _raise_for_status(response)
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise Unavailable(str(event["error"].get("message", event["error"])))
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or ""
    except httpx.RequestError as error:
        raise _unreachable(client, error) from None


def _first_model(client: httpx.Client) -> str:
    try:
        response = client.get("/v1/models")
    except httpx.RequestError as error:
        raise _unreachable(client, error) from None
    _raise_for_status(response)
    models: list[dict[str, str]] = response.json()["data"]
    if not models:
        raise Unavailable(f"{client.base_url} serves no model")
    return models[0]["id"]


def _raise_for_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    text = response.read().decode(errors="replace")
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = text[:200]
    raise InvalidRequest(f"the server answered {response.status_code}: {message}")


def _unreachable(client: httpx.Client, error: httpx.RequestError) -> KvasirError:
    return Unavailable(f"no answer from {client.base_url}: {error}; is `kvasir serve` running?")
