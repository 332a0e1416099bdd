"""Which GPUs the workers of this machine may use, one a rank as long as there are enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from workers.core.errors import ConfigError

_DRIVER = Path("/proc/driver/nvidia/gpus")


def visible_gpus(environ: Mapping[str, str], driver: Path = _DRIVER) -> list[str]:
    """What CUDA_VISIBLE_DEVICES allows, else every GPU the driver knows."""
    allowed = environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [gpu.strip() for gpu in allowed.split(",") if gpu.strip()]
    return [str(index) for index, _ in enumerate(driver.iterdir())] if driver.is_dir() else []


def gpu_env(gpus: Sequence[str], first: int, ranks: int) -> dict[str, str]:
    """Environment of a worker of so many ranks, each with a GPU of its own; `first`: how many the
    workers before it have. When all are taken they are shared in turn. Raises ConfigError where
    there are fewer GPUs than ranks."""
    if not gpus:
        return {}
    if ranks > len(gpus):
        raise ConfigError(f"a replica of {ranks} ranks needs as many GPUs; here are {len(gpus)}")
    own = (gpus[(first + rank) % len(gpus)] for rank in range(ranks))
    return {"CUDA_VISIBLE_DEVICES": ",".join(own)}
