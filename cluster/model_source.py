"""Which model is meant: the shipped demo by its short name, else a directory or a hub id."""

from __future__ import annotations

from pathlib import Path

from workers.models import resolve

DEMO = "demo"


def demo_model() -> Path:
    return Path(__file__).parent.parent / "workers" / "demo" / "model"


def resolve_model(model: str) -> Path:
    """The checkpoint directory; a hub id is fetched if need be. Raises CheckpointError."""
    return (demo_model() if model == DEMO else resolve.resolve_model(model)).resolve()
