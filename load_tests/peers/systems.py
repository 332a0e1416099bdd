"""How each system is started: the one table of commands, environments and names.

A system is written `name` or `name:dtype`, as in `vllm:float32`. bfloat16 is what the checkpoints
are; a processor without instructions for it may well be faster in float32.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
MODEL_NAME = "peers"
CONTEXT = 4096  # tokens; the longest request has 3,200
KV_TOKENS = 32_768  # for all alike; vLLM takes whole GiB and so a few more
MAX_SEQS = 32
ITEM_BYTES = {"bfloat16": 2, "float32": 4}
GGUF_TYPES = {"bfloat16": "bf16", "float32": "f32"}


@dataclass(frozen=True, slots=True)
class Setting:
    """Where things are. `peers`: the folder that the install scripts were given."""

    peers: Path
    model: Path
    threads: int
    port: int


@dataclass(frozen=True, slots=True)
class System:
    """`ready`: the path that answers 200 once it serves; None = it has no port, jobs come and go
    as lines of JSON (see batch_runner.py). `prepare`: run once before the first start.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: str | None = "/health"
    prepare: tuple[str, ...] = ()
    makes: Path | None = None  # what `prepare` writes; if it is there, nothing is prepared
    versions: Path | None = None


def find(text: str, setting: Setting) -> System:
    """Raises ValueError for names and dtypes that are not in the tables."""
    name, _, dtype = text.partition(":")
    dtype = dtype or "bfloat16"
    if name not in SYSTEMS:
        raise ValueError(f"no system {name!r}; there are {', '.join(SYSTEMS)}")
    if dtype not in ITEM_BYTES:
        raise ValueError(f"{text!r}: the dtype is one of {', '.join(ITEM_BYTES)}")
    return SYSTEMS[name](text, dtype, setting)


def _kvasir(config: str) -> Callable[[str, str, Setting], System]:
    def system(name: str, dtype: str, setting: Setting) -> System:
        command = [str(Path(sys.executable).with_name("kvasir")), "serve"]
        command += ["--config", str(HERE / config), "--model", str(setting.model)]
        command += ["--served-name", MODEL_NAME, "--dtype", dtype]
        command += ["--http-port", str(setting.port), "--grpc-port", "0", "--admin-port", "0"]
        return System(name, tuple(command))

    return system


def _vllm(*more: str) -> Callable[[str, str, Setting], System]:
    def system(name: str, dtype: str, setting: Setting) -> System:
        home = setting.peers / "vllm"
        # resolve() would leave the environment for the interpreter that it was made from
        command = [str(home / "bin/vllm"), "serve", str(setting.model), "--dtype", dtype]
        command += ["--max-model-len", str(CONTEXT), "--max-num-seqs", str(MAX_SEQS)]
        command += ["--served-model-name", MODEL_NAME, "--enable-prompt-tokens-details"]
        command += ["--host", "127.0.0.1", "--port", str(setting.port), *more]
        preload = [home / "lib/libiomp5.so", *sorted(home.glob("tcmalloc/**/libtcmalloc_*.so.4"))]
        env = {
            # Without this it computes on one core and keeps the other for its own processes:
            # half the speed on a machine with two.
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{setting.threads - 1}",
            "VLLM_CPU_KVCACHE_SPACE": str(_kv_gib(setting.model, dtype)),
            "VLLM_CACHE_ROOT": str(home / "cache"),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "LD_PRELOAD": ":".join(str(path) for path in preload if "debug" not in path.name),
            "PATH": f"{home / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        }
        return System(name, tuple(command), env, versions=home / "versions.txt")

    return system


def _llama_cpp(name: str, dtype: str, setting: Setting) -> System:
    home = setting.peers / "llama-cpp"
    kind = GGUF_TYPES[dtype]
    gguf = home / f"{setting.model.resolve().name}-{kind}.gguf"
    threads = str(setting.threads)
    command = [str(home / "build/bin/llama-server"), "--model", str(gguf), "--alias", MODEL_NAME]
    command += ["--threads", threads, "--threads-batch", threads, "--flash-attn", "on"]
    # One pool of KV for 16 requests; without --kv-unified each would own a sixteenth of it.
    command += ["--parallel", "16", "--kv-unified", "--ctx-size", str(KV_TOKENS)]
    command += ["--cache-ram", "0"]  # no second cache of prompts beside the KV
    command += ["--host", "127.0.0.1", "--port", str(setting.port), "--no-webui"]
    prepare = [str(home / "bin/python"), str(HERE / "to_gguf.py"), str(home / "source")]
    prepare += [str(setting.model), str(gguf), kind]
    return System(
        name,
        tuple(command),
        prepare=tuple(prepare),
        makes=gguf,
        versions=home / "versions.txt",
    )


def _transformers(mode: str) -> Callable[[str, str, Setting], System]:
    def system(name: str, dtype: str, setting: Setting) -> System:
        home = setting.peers / "transformers"
        command = [str(home / "bin/python"), str(HERE / "batch_runner.py"), mode]
        command += [str(setting.model), dtype, str(KV_TOKENS)]
        env = {"OMP_NUM_THREADS": str(setting.threads), "HF_HUB_OFFLINE": "1"}
        return System(name, tuple(command), env, ready=None, versions=home / "versions.txt")

    return system


def _kv_gib(model: Path, dtype: str) -> int:
    """Whole GiB that hold KV_TOKENS."""
    config = json.loads((model / "config.json").read_text())
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    values = 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * width
    return -(-values * ITEM_BYTES[dtype] * KV_TOKENS // 2**30)


SYSTEMS: dict[str, Callable[[str, str, Setting], System]] = {
    "kvasir": _kvasir("kvasir.yaml"),
    "kvasir-pd": _kvasir("kvasir-pd.yaml"),
    "vllm": _vllm(),
    "vllm-256": _vllm("--max-num-batched-tokens", "256"),
    "llama-cpp": _llama_cpp,
    "transformers": _transformers("generate"),
    "transformers-cb": _transformers("continuous"),
}
