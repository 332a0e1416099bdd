"""How right placement was about whole requests: their times to the first token, and to the second.
Read when somebody asks, from the trails that are kept anyway."""

from __future__ import annotations

from router.explain.compared import compared
from router.explain.trails import Trails
from router.latency.errors import KEPT, ErrorTrack, Kind

KINDS: tuple[Kind, ...] = ("TTFT", "FIRST_GAP")


def request_errors(trails: Trails) -> dict[Kind, ErrorTrack]:
    """Of the newest requests that ended well and had both."""
    found: dict[Kind, ErrorTrack] = {kind: ErrorTrack() for kind in KINDS}
    for trail in trails.served(KEPT):
        for each in compared(trail):
            for kind in KINDS:
                if each.name == kind:
                    found[kind].note(each.predicted, each.actual)
    return {kind: track for kind, track in found.items() if track.count}
