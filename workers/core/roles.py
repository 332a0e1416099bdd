"""What a replica does for a request, by the name that config, registry and metrics use."""

from __future__ import annotations

from typing import Literal

RoleName = Literal["prefill", "decode", "aggregated"]
