"""The `kvasir` command. What goes wrong in the world is one line on stderr and exit code 2."""

from __future__ import annotations

import os
import signal
import sys

from workers.core.errors import KvasirError

IN_CONTAINERS = (["worker"], ["router"], ["drain"])


def main() -> None:
    if os.getpid() == 1:  # of a container: the kernel drops signals that it has no handler for
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    try:
        # Imported here: it takes long enough for a Ctrl-C to fall into it.
        if sys.argv[1:2] in IN_CONTAINERS:
            from cluster.commands.containers import app
        else:
            from cluster.commands.app import app
        app()
    except KvasirError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
