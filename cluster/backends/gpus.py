"""Which GPUs the workers of this machine may use, one each as long as there are enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/gpus")


def visible_gpus(environ: Mapping[str, str], driver: Path = _DRIVER) -> list[str]:
    """What CUDA_VISIBLE_DEVICES allows, else every GPU the driver knows."""
    allowed = environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [gpu.strip() for gpu in allowed.split(",") if gpu.strip()]
    return [str(index) for index, _ in enumerate(driver.iterdir())] if driver.is_dir() else []


def gpu_env(gpus: Sequence[str], worker: int) -> dict[str, str]:
    """Environment of the `worker`-th worker; more workers than GPUs share them in turn."""
    return {"CUDA_VISIBLE_DEVICES": gpus[worker % len(gpus)]} if gpus else {}
