"""python -m cluster.autoscaler --config slice.json: one planner, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cluster.autoscaler.config import load_slice
from cluster.autoscaler.process import EXIT_CONFIG, run
from workers.core.errors import CheckpointError, ConfigError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.autoscaler", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="JSON of a PlannerConfig")
    arguments = parser.parse_args()
    try:
        run(load_slice(arguments.config))
    except (ConfigError, CheckpointError) as error:
        print(f"kvasir planner: {error.message}", file=sys.stderr)
        return EXIT_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
