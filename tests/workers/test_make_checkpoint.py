"""Checkpoints for load tests: readable by us and by transformers, the same for the same seed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.checkpoints import Oracle
from workers.core.request import SamplingParams
from workers.llm import LLM

SCRIPT = Path(__file__).parents[2] / "load_tests" / "make_checkpoint.py"


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str, shard_bytes: int = 0) -> None:
    script = runpy.run_path(str(SCRIPT))
    main: Any = script["main"]
    if shard_bytes:
        main.__globals__["SHARD_BYTES"] = shard_bytes
    monkeypatch.setattr(
        sys, "argv", [str(SCRIPT), "--shape", "tiny", "--out", str(out), *arguments]
    )
    main()


def test_tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, tmp_path / "a", "--dtype", "float32")
    run(monkeypatch, tmp_path / "b", "--dtype", "float32", shard_bytes=4 << 20)
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    theirs = AutoTokenizer.from_pretrained(tmp_path / "a")
    messages = [{"role": "user", "content": "Grüß Gott! 17 + 25?"}]
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    outputs = []
    for name in "ab":
        with LLM(str(tmp_path / name), kv_tokens=512) as llm:
            assert llm.tokenizer is not None
            chat = llm.tokenizer.apply_chat_template(messages)
            outputs.append(llm.generate([chat], params)[0].token_ids)
    want = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat == want
    assert outputs[0] == outputs[1]
    assert Oracle(tmp_path / "b").generate(chat, 6)[0] == outputs[0]


def test_another_seed_is_another_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        run(monkeypatch, tmp_path / seed, "--seed", seed)
    first, second = ((tmp_path / seed / "model.safetensors").read_bytes() for seed in ("1", "2"))
    assert len(first) == len(second)
    assert first != second
