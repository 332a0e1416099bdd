"""A config file that changes while its cluster runs; nobody waits for a clock here."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from cluster.config import load_config
from cluster.live_config import LiveConfig
from router.flow.classes import SloConfig
from workers.core.errors import Unavailable

FILE = "model: demo\nslo:\n  default: chat\n  classes:\n    chat: {itl: 50ms}\n"


class Cluster:
    """What is told to it, and to people."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.away = False
        self.told: list[SloConfig] = []
        self.said: list[str] = []
        path.write_text(FILE)
        read = functools.partial(load_config, path)
        self.live = LiveConfig(path, read(), read, self.set_slo, self.said.append)

    async def set_slo(self, slo: SloConfig) -> None:
        if self.away:
            raise Unavailable("it is away")
        self.told.append(slo)

    async def now(self, text: str) -> str:
        """What people hear when the file says `text`."""
        self.path.write_text(text)
        self.said.clear()
        await self.live.look()
        return "\n".join(self.said)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "cluster.yaml")


async def test_new_targets_hold_at_once_and_are_told_once(cluster: Cluster) -> None:
    await cluster.live.look()
    assert not cluster.told and not cluster.said
    assert await cluster.now(FILE.replace("50ms", "20ms")) == "slo is changed"
    await cluster.live.look()
    assert [slo.classes["chat"].itl for slo in cluster.told] == [0.02]
    assert await cluster.now(FILE) == "slo is changed"
    assert cluster.told[-1].classes["chat"].itl == 0.05


async def test_everything_else_needs_a_restart(cluster: Cluster) -> None:
    said = await cluster.now(FILE + "grace_s: 3\nengine: {max_seqs: 2}\n")
    assert "engine, grace_s changed: that needs a restart" in said and not cluster.told
    assert await cluster.now("# the same\n" + FILE) == ""


async def test_a_broken_or_missing_file_is_said_and_ignored(cluster: Cluster) -> None:
    assert ":5: slo.classes.chat.itl: 'soon' is no duration" in await cluster.now(
        FILE.replace("50ms", "soon")
    )
    cluster.said.clear()
    cluster.path.unlink()
    await cluster.live.look()
    await cluster.live.look()
    assert len(cluster.said) == 1 and "cannot read" in cluster.said[0]
    assert not cluster.told
    assert await cluster.now(FILE.replace("50ms", "20ms")) == "slo is changed"


async def test_a_router_that_is_away_is_told_later(cluster: Cluster) -> None:
    cluster.away = True
    assert "not changed yet: it is away" in await cluster.now(FILE.replace("50ms", "20ms"))
    cluster.away = False
    await cluster.live.look()
    assert [slo.classes["chat"].itl for slo in cluster.told] == [0.02]
