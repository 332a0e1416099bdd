"""What a client says of how it wants to be treated: our headers, and OpenAI's `service_tier`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from router.api import Terms
from workers.core.errors import InvalidRequest
from workers.core.validation import MAX_PRIORITY

CLASS = "x-kvasir-class"
TENANT = "x-kvasir-tenant"
DEADLINE = "x-kvasir-deadline-ms"
PRIORITY = "x-kvasir-priority"
# What OpenAI's tiers are here, where there is such a class; the others are the default one.
TIERS: Mapping[str, str] = {"priority": "interactive", "flex": "batch"}


def terms_of(headers: Mapping[str, str], tier: str | None, classes: Collection[str]) -> Terms:
    """The header goes before the tier. Raises InvalidRequest that names the header."""
    named = TIERS.get(tier or "")
    return Terms(
        slo_class=headers.get(CLASS) or (named if named in classes else None),
        tenant=headers.get(TENANT, ""),
        deadline_s=_deadline_s(headers.get(DEADLINE)),
        priority=_priority(headers.get(PRIORITY)),
    )


def _deadline_s(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise InvalidRequest(
            f"{DEADLINE} is {value[:40]!r}; it must be a number of milliseconds above 0",
            param=DEADLINE,
        )
    return milliseconds / 1e3


def _priority(value: str | None) -> int:
    if value is None:
        return 0
    try:
        return int(value[:40])
    except ValueError:
        raise InvalidRequest(
            f"{PRIORITY} is {value[:40]!r}; it must be an integer from {-MAX_PRIORITY} to "
            f"{MAX_PRIORITY}",
            param=PRIORITY,
        ) from None
