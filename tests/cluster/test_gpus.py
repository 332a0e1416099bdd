from __future__ import annotations

from pathlib import Path

from cluster.backends.gpus import gpu_env, visible_gpus


def test_what_is_visible(tmp_path: Path) -> None:
    assert visible_gpus({}, tmp_path / "no driver") == []
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert visible_gpus({}, tmp_path) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "3, 5"}, tmp_path) == ["3", "5"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []


def test_one_each_then_in_turn() -> None:
    given = [gpu_env(["3", "5"], worker) for worker in range(3)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in given] == ["3", "5", "3"]
    assert gpu_env([], 0) == {}
