"""Stubs are what the proto files say, and block ids are what the vectors beside them say."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from workers.core.hashing import block_ids, namespace

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto" / "kvasir" / "v1"
VECTORS = json.loads((PROTO / "block_id_vectors.json").read_text())["vectors"]


def test_stubs_are_fresh(tmp_path: Path) -> None:
    names = sorted(path.stem for path in PROTO.glob("*.proto"))
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-Iworkers/wire={PROTO}"),
            *(f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")),
            *(f"workers/wire/{name}.proto" for name in names),
        ],
        check=True,
        cwd=ROOT,
    )
    made = {path.name: path.read_text() for path in (tmp_path / "workers" / "wire").iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "workers" / "wire").glob("*_pb2*.py*")}
    assert made.keys() == kept.keys()
    stale = [name for name in made if made[name] != kept[name]]
    assert not stale, "run `make proto`"


def reference_ids(vector: dict) -> list[str]:
    """The chain as the design writes it, with nothing of ours."""
    fields = (vector["kv_abi"], vector["lora"], vector["cache_salt"])
    space = b"".join(struct.pack("<I", len(raw)) + raw for raw in (f.encode() for f in fields))
    last = hashlib.blake2b(space, digest_size=16).digest()
    ids = []
    size, tokens = vector["block_size"], vector["tokens"]
    for block in range(len(tokens) // size):
        packed = struct.pack(f"<{size}i", *tokens[block * size : (block + 1) * size])
        last = hashlib.blake2b(last + packed, digest_size=16).digest()
        ids.append(last.hex())
    return ids


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_block_ids_match_the_vectors(vector: dict) -> None:
    space = namespace(vector["kv_abi"], lora=vector["lora"], cache_salt=vector["cache_salt"])
    ours = [block.hex() for block in block_ids(vector["tokens"], space, vector["block_size"])]
    assert ours == vector["block_ids"]
    assert reference_ids(vector) == vector["block_ids"]


def test_vectors_differ_where_the_namespace_does() -> None:
    firsts = [vector["block_ids"][0] for vector in VECTORS if vector["block_ids"]]
    assert len(set(firsts)) == len(firsts)
