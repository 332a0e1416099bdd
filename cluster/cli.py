"""The `kvasir` command. What goes wrong in the world is one line on stderr and exit code 2."""

from __future__ import annotations

import sys

from workers.core.errors import KvasirError


def main() -> None:
    try:
        # Imported here: it takes long enough for a Ctrl-C to fall into it.
        from cluster.commands.app import app

        app()
    except KvasirError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
