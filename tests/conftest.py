"""For every test."""

from __future__ import annotations

import os

# Before gRPC is imported: where its threads run while a test starts a process, its fork handlers
# write a line of their own into what that process says.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from hypothesis import settings

# A machine shared with others is slow for a moment: no example fails for that.
settings.register_profile("kvasir", deadline=None)
settings.load_profile("kvasir")
