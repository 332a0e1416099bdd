"""The GPU benchmark's arithmetic, on a CPU with a stopwatch that always shows the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoints import make_checkpoint
from workers.bench import gpu
from workers.config import EngineConfig
from workers.runner.load import load_runner


class Stopped:
    """A quarter of a second, whatever was done; counts how often it was asked."""

    asked = 0

    def start(self) -> None:
        self.asked += 1

    def stop(self) -> float:
        return 0.25


async def test_rows_are_bytes_and_operations_over_time(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", tie_word_embeddings=True)
    config = EngineConfig(dtype="float32", block_size=4, kv_tokens=400)
    runner = load_runner(str(model), config, device="cpu")
    bench = gpu.GpuBench(runner, Stopped(), block_size=4, step_tokens=7, bandwidth=2e9, rate=4e9)
    head = 260 * 64
    layers = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3)  # q and o, k and v, the three of SwiGLU
    pair = 4 * 4 * 16 * 2

    step, moved, flops = await bench.decode(3, 20)
    assert (step.name, step.value, step.unit) == ("gpu/decode/b3/c20/step", 250 / 8, "ms")
    kv = 3 * 20 * 2 * 2 * 2 * 16 * 4  # two layers of keys and values, two heads of 16
    assert moved.value == pytest.approx(((layers + head) * 4 + kv) / (0.25 / 8) / 1e12)
    assert moved.ratio == pytest.approx(moved.value * 1e12 / 2e9)
    expected = 3 * (2 * (layers + head) + 20 * pair)
    assert flops.value == pytest.approx(expected / (0.25 / 8) / 1e12)

    speed, flops = await bench.prefill(20)
    assert (speed.name, speed.value) == ("gpu/prefill/t20/speed", 80)
    expected = 2 * (20 * layers + head) + 210 * pair
    assert flops.value == pytest.approx(expected / 0.25 / 1e12)
    assert flops.ratio == pytest.approx(expected / 0.25 / 4e9)
    await runner.close()


def test_limits_of_the_device() -> None:
    cpu, watch = torch.device("cpu"), Stopped()
    assert gpu.copy_bandwidth(cpu, watch, size=1000) == pytest.approx(2000 * 20 / 0.25)
    assert gpu.product_rate(cpu, watch, size=8) == pytest.approx(2 * 8**3 * 20 / 0.25)
    assert watch.asked == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--model", "anything"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
