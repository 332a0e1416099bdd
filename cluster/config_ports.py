"""Section `ports` of cluster.yaml: where a worker in a container of its own listens."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Port = Annotated[int, Field(ge=1, le=65535)]


class PortsSection(BaseModel):
    """For `kvasir worker`, whose host has one worker. `transfer`, `first-last`: everything else
    that workers listen on for each other; null = whatever the kernel gives out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    worker: Port = 9100
    metrics: Port = 9101
    transfer: str | None = Field(default=None, pattern=r"^\d{1,5}-\d{1,5}$")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.worker == self.metrics:
            raise ValueError("ports.worker and ports.metrics must be different")
        if self.transfer is not None:
            first, last = self.transfer_range
            if not 1 <= first <= last <= 65535:
                raise ValueError("ports.transfer: expected first-last, from 1 to 65535")
            if any(first <= port <= last for port in (self.worker, self.metrics)):
                raise ValueError("ports.worker and ports.metrics must not lie in ports.transfer")
        return self

    @property
    def transfer_range(self) -> tuple[int, int]:
        """First and last; every port where none are set."""
        first, _, last = (self.transfer or "1-65535").partition("-")
        return int(first), int(last)
