"""What a process writes on stderr: lines for people, or an object of JSON a line for machines. Both
say which request a line is of, and JSON its trace too."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from workers.core.trace import SUBJECT

LogStyle = Literal["text", "json"]
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
TEXT_OF_RANK = "%(asctime)s %(levelname)s %(name)s rank {rank}: %(message)s"


class Voice(NamedTuple):
    """How the ranks of a replica log. `replica`: whose they are; empty: of one without a name."""

    style: LogStyle
    replica: str


PLAIN = Voice("text", "")


class JsonLines(logging.Formatter):
    """`process`: which of the cluster's speaks, such as router or prefill-0; `rank`: which of the
    processes of that."""

    def __init__(self, process: str, rank: int | None = None) -> None:
        super().__init__()
        self._speaker: dict[str, object] = {"process": process}
        if rank is not None:
            self._speaker["rank"] = rank

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._speaker,
            "message": record.getMessage(),
        }
        subject = SUBJECT.get()
        if subject is not None:
            line |= {name: value for name, value in subject._asdict().items() if value}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr(style: LogStyle, process: str, level: str = "INFO") -> None:
    """All that this process logs from now on, in place of what was set up before."""
    _log_as(JsonLines(process) if style == "json" else logging.Formatter(TEXT), level)


def log_as_rank(voice: Voice, rank: int) -> None:
    """The same for a rank that a replica has beside its own process."""
    if voice.style == "json":
        _log_as(JsonLines(voice.replica, rank), "INFO")
    else:
        _log_as(logging.Formatter(TEXT_OF_RANK.format(rank=rank)), "INFO")


def _log_as(lines: logging.Formatter, level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(lines)
    logging.basicConfig(level=level, handlers=[handler], force=True)
