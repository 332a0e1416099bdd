"""Writes a checkpoint as GGUF; run in llama-cpp's environment.

    python to_gguf.py LLAMA_CPP_SOURCE MODEL OUT bf16|f32

llama.cpp's converter knows tokenizers by a hash of what they do, and refuses others. Prompts are
token ids here, so how llama.cpp would cut text does not matter: every tokenizer passes as GPT-2's.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path


def main() -> None:
    source, model, out, kind = sys.argv[1:]
    sys.path.insert(0, source)
    base = importlib.import_module("conversion.base")
    base.TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
    partial = Path(out).with_suffix(".partial")
    sys.argv = ["convert", model, "--outfile", str(partial), "--outtype", kind]
    try:
        runpy.run_path(str(Path(source) / "convert_hf_to_gguf.py"), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    partial.rename(out)


if __name__ == "__main__":
    main()
