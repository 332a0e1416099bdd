"""The HTTP endpoint that a person names with --url."""

from __future__ import annotations

import ipaddress

import httpx

from workers.core.errors import ConfigError


def parse_url(url: str) -> httpx.URL:
    """Raises ConfigError for what is no http:// or https:// URL with a host."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise ConfigError(f"--url {url!r}: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"--url {url!r}: expected http://host:port")
    return parsed


def takes_proxy(url: httpx.URL) -> bool:
    """A proxy is for the world outside: it would look for 127.0.0.1 on its own machine."""
    if url.host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return True
