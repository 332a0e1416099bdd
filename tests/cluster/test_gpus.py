from __future__ import annotations

from pathlib import Path

import pytest

from cluster.backends.gpus import gpu_env, visible_gpus
from workers.core.errors import ConfigError


def test_what_is_visible(tmp_path: Path) -> None:
    assert visible_gpus({}, tmp_path / "no driver") == []
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert visible_gpus({}, tmp_path) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, 5"}, tmp_path) == ["3", "5"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []


def test_one_each_then_in_turn() -> None:
    given = [gpu_env(["3", "5"], worker, 1) for worker in range(3)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in given] == ["3", "5", "3"]
    assert gpu_env([], 0, 2) == {}


def test_one_for_each_rank() -> None:
    gpus = ["0", "1", "2", "3"]
    given = [gpu_env(gpus, first, 2) for first in (0, 2, 3)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in given] == ["0,1", "2,3", "3,0"]
    with pytest.raises(ConfigError, match="4 ranks needs as many GPUs; here are 2"):
        gpu_env(["0", "1"], 0, 4)
