"""The files of a checkpoint: which safetensors there are, and what their headers promise.

Everything that can be wrong with a file is found here, before any tensor is loaded.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from pathlib import Path
from types import MappingProxyType

from workers.core.errors import CheckpointError
from workers.models.config import DTypeName, read_json

# dtype in a safetensors header -> bytes of an element, and our name for it
DTYPE_BYTES: Mapping[str, int] = MappingProxyType({"BF16": 2, "F16": 2, "F32": 4})
DTYPE_NAMES: Mapping[str, DTypeName] = MappingProxyType(
    {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
)
MAX_HEADER_BYTES = 100 << 20  # the safetensors format's own limit
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class TensorEntry:
    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`files` in a fixed order, with the raw header of each; `tensors` by name."""

    directory: Path
    headers: dict[Path, bytes]
    tensors: dict[str, TensorEntry]

    @property
    def dtype(self) -> DTypeName:
        """Of most tensors."""
        counts = Counter(entry.dtype for entry in self.tensors.values())
        return DTYPE_NAMES[counts.most_common(1)[0][0]] if counts else "float32"


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read and check every header. Raises CheckpointError naming the file, and the tensor if it is
    one that is at fault."""
    headers: dict[Path, bytes] = {}
    tensors: dict[str, TensorEntry] = {}
    table = directory / "model.safetensors.index.json"
    placed = _placement(table) if table.exists() else None
    for path in _files(directory, placed):
        headers[path] = header = _raw_header(path)
        tensors |= _entries(path, header)
    for name, file in (placed or {}).items():
        entry = tensors.get(name)
        if entry is None or entry.file.name != file:
            raise CheckpointError(f"{directory / file} lacks tensor {name}, promised by {table}")
    return Checkpoint(directory, headers, tensors)


def _placement(index: Path) -> dict[str, str]:
    """Tensor -> file name, from the index."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointError(f"{index} has no weight_map")
    for name, file in placed.items():
        # A name with a folder in it could point anywhere on this machine.
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index}: weight_map[{name!r}] must be a file name")
        if not file.endswith(".safetensors"):
            raise CheckpointError(f"{index}: {file} is not a safetensors file")
    return placed


def _files(directory: Path, placed: dict[str, str] | None) -> list[Path]:
    if placed is not None:
        return [directory / file for file in sorted(set(placed.values()))]
    single = directory / "model.safetensors"
    if single.exists():
        return [single]
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{directory} has only pickled weights ({', '.join(pickles)}), which can run code when "
            "they are loaded and are refused; convert them to safetensors"
        )
    raise CheckpointError(
        f"{directory} has neither model.safetensors nor model.safetensors.index.json"
    )


def _raw_header(path: Path) -> bytes:
    """The JSON header: 8 bytes of little-endian length, then so many bytes of JSON."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(f"{path} is corrupt: a header of {length} bytes")
            header = file.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if len(header) < max(length, 1):
        raise CheckpointError(f"{path} is truncated within its header")
    return header


def _entries(path: Path, header: bytes) -> dict[str, TensorEntry]:
    try:
        described = json.loads(header)
        described.pop("__metadata__", None)
        entries = {
            name: (
                TensorEntry(path, str(value["dtype"]), tuple(map(index, value["shape"]))),
                range(*value["data_offsets"]),
            )
            for name, value in described.items()
        }
        end = max((place.stop for _, place in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is corrupt: its header cannot be read") from error
    expected, actual = 8 + len(header) + end, path.stat().st_size
    if actual != expected:
        fault = "truncated" if actual < expected else "corrupt"
        raise CheckpointError(f"{path} is {fault}: {actual} bytes, its header says {expected}")
    for name, (entry, place) in entries.items():
        size = DTYPE_BYTES.get(entry.dtype)
        if size is None:
            raise CheckpointError(
                f"{path}: tensor {name} is {entry.dtype}; supported are {', '.join(DTYPE_BYTES)}"
            )
        if len(place) != math.prod(entry.shape) * size:
            raise CheckpointError(f"{path} is corrupt: tensor {name} has the wrong size")
    return {name: entry for name, (entry, _) in entries.items()}
