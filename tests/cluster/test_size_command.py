"""`kvasir size` as people see it: what fits, what does not and why; from names, files, folders."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.cli import main
from workers.models.shapes import SHAPES

Size = Callable[..., str]


@pytest.fixture
def size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Size:
    """Runs `kvasir size` and returns what it printed; fails unless it exits with `code`."""
    monkeypatch.setenv("COLUMNS", "140")

    def run(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["kvasir", "size", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def figures(size: Size, out: Path, *arguments: str) -> dict[str, Any]:
    size(*arguments, "--json", str(out))
    values: dict[str, Any] = json.loads(out.read_text())
    return values


def test_what_is_printed(size: Size) -> None:
    printed = size("llama-8b", "--hardware", "h100", "--tp", "2", "--context", "8192")
    for part in (
        "LlamaForCausalLM, 8.03 billion parameters in bfloat16, sequences of 8,192 tokens",
        "each of 2 ranks on h100",
        "7.48 GiB",  # weights of a rank
        "65,536 B",  # KV of a token, half of 2 x 32 x 8 x 128 x 2
        "of 80.00 GiB, 90% of which may be taken",
        "P x Q/8 x 1.2 over 2 ranks",
        "8.97 GiB",  # 8.03e9 x 2 x 1.2 / 2
        "<- asked",
    ):
        assert part in printed, part


def test_figures_fit_together(size: Size, tmp_path: Path) -> None:
    values = figures(size, tmp_path / "out.json", "deepseek-v3", "--ep", "16", "--tp", "4")
    asked = values["asked"]
    assert asked["split"] == {"tensor": 4, "experts": 16}
    assert asked["weights"] == sum(values["weights"].values())
    assert asked["kv_bytes_per_token"] == 61 * 576 * 2
    assert values["rule_of_thumb_bytes"] == pytest.approx(671_026_419_200 * 2 * 1.2)
    rows = {(each["split"]["tensor"], each["split"]["experts"]): each for each in values["splits"]}
    assert rows[4, 16] == asked | {"works": False}, "84 GB a rank are too much for 72"
    assert rows[4, 32]["works"]
    assert rows[1, 1]["kv_tokens"] == 0


def test_which_splits_work_and_why_others_do_not(size: Size) -> None:
    printed = size("qwen3-0.6b")
    assert "32 does not divide 16 attention heads" in printed
    assert "does not fit" in size("llama-70b", "--tp", "8", "--hardware", "l40s")
    mixture = size("mixtral-8x7b", "--tp", "2")
    assert "16 does not divide 8 experts" in mixture


def test_kv_of_fp8_is_half_and_said_to_be_missing(size: Size, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    half = figures(size, out, "llama-8b", "--kv-dtype", "fp8")["asked"]["kv_bytes_per_token"]
    assert half * 2 == figures(size, out, "llama-8b")["asked"]["kv_bytes_per_token"]
    assert "the engine has no fp8 KV yet" in size("llama-8b", "--kv-dtype", "fp8")
    assert "no fp8" not in size("llama-8b")


def test_a_tied_head_is_packed_on_cpus_alone(size: Size, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert figures(size, out, "tiny", "--hardware", "cpu")["weights"]["head"] == 2048 * 256 * 2
    assert figures(size, out, "tiny", "--hardware", "h100")["weights"]["head"] == 0
    plain = figures(size, out, "tiny", "--hardware", "cpu", "--dtype", "float32")
    assert plain["weights"]["head"] == 0


def test_names_files_and_folders_are_the_same_model(size: Size, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPES["tiny"] | {"dtype": "float32"}))
    out = tmp_path / "out.json"
    asked = [
        figures(size, out, *arguments)["asked"]
        for arguments in (
            (str(tmp_path),),
            (str(tmp_path / "config.json"),),
            ("tiny", "--dtype", "float32"),
        )
    ]
    assert asked[0] == asked[1] == asked[2]
    assert figures(size, out, "demo")["parameters"] > 0


def test_quantised_weights_are_counted_as_they_are_served(size: Size, tmp_path: Path) -> None:
    config = SHAPES["tiny"] | {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out.json"
    plain = figures(size, out, "tiny")
    assert figures(size, out, str(tmp_path))["weights"] == plain["weights"]
    assert "dequantised when they are loaded" in size(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "model 'nothing' is neither a directory, nor a config.json, nor one of demo"),
        (["tiny", "--hardware", "h900"], "unknown hardware 'h900'; known: a100"),
        (["tiny", "--tp", "3"], "tensor_parallel 3, expert_parallel 1: 3 does not divide 4"),
        (["tiny", "--ep", "2"], "the model has no experts"),
        (["tiny", "--context", "4097"], "context 4097 is longer than the model's own, 4096"),
    ],
)
def test_what_is_wrong_is_one_line(size: Size, arguments: list[str], says: str) -> None:
    printed = size(*arguments, code=2)
    assert says in printed
    assert len(printed.splitlines()) == 1


def test_a_folder_without_config(size: Size, tmp_path: Path) -> None:
    assert f"{tmp_path / 'config.json'} is missing" in size(str(tmp_path), code=2)
