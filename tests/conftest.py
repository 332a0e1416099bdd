"""For every test."""

from __future__ import annotations

import os
import signal
from types import FrameType

# Before gRPC is imported: where its threads run while a test starts a process, its fork handlers
# write a line of their own into what that process says.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import pytest
from hypothesis import settings

from tests.cluster.processes import children

# A machine shared with others is slow for a moment: no example fails for that.
settings.register_profile("kvasir", deadline=None)
settings.load_profile("kvasir")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """SIGTERM ends all that was started, as Ctrl-C does. Anew for each test: an event loop that has
    had the signal leaves it at its default."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """What xdist starts has tests to end too: a terminal's Ctrl-C reaches it, SIGTERM does not."""

    def end(number: int, frame: FrameType | None) -> None:
        if config.pluginmanager.has_plugin("dsession"):
            for pid in children(os.getpid()):
                os.kill(pid, signal.SIGTERM)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGTERM, end)
