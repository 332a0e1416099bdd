"""How long steps and transfers will take."""

from router.latency.fitted import FittedLatency
from router.latency.model import HardwareClass, LatencyModel
from router.latency.transfers import MeasuredTransfer

__all__ = ["HardwareClass", "LatencyModel", "MeasuredTransfer", "FittedLatency"]
