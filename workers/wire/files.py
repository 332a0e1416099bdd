"""Files that may be replaced while we run: certificates, keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Stamp = tuple[tuple[int, int, int] | None, ...]


def stamp(paths: Sequence[Path]) -> Stamp:
    """Another one when any of them was replaced or written to; a few microseconds each."""
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()  # of what a link leads to: Kubernetes swaps the link
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
