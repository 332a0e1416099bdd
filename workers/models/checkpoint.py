"""The files of a checkpoint: which safetensors there are, and what their headers promise.

Everything that can be wrong with a file is found here, before any tensor is loaded. Tensors are
logical ones: those of a quantised checkpoint have their plain names and shapes.
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
from workers.models.architecture import DTypeName
from workers.models.fields import read_json
from workers.models.quantisation import Logical, Stored, logical_tensors, read_quantisation

# dtype in a safetensors header -> bytes of an element, and our name for it
DTYPE_BYTES: Mapping[str, int] = MappingProxyType({"BF16": 2, "F16": 2, "F32": 4})
QUANTISED_BYTES: Mapping[str, int] = MappingProxyType({"F8_E4M3": 1, "U8": 1})
DTYPE_NAMES: Mapping[str, DTypeName] = MappingProxyType(
    {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
)
MAX_HEADER_BYTES = 100 << 20  # the safetensors format's own limit
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`headers`: the raw one of each file, in a fixed order; `tensors` by name."""

    directory: Path
    headers: dict[Path, bytes]
    tensors: dict[str, Logical]

    @property
    def dtype(self) -> DTypeName:
        """Of most tensors that are not quantised."""
        plain = (tensor for tensor in self.tensors.values() if isinstance(tensor, Stored))
        counts = Counter(tensor.dtype for tensor in plain)
        return DTYPE_NAMES[counts.most_common(1)[0][0]] if counts else "float32"


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read and check every header. Raises CheckpointError naming the file, and the tensor if it is
    one that is at fault."""
    config = directory / "config.json"
    quantisation = read_quantisation(read_json(config), config)
    sizes = DTYPE_BYTES if quantisation is None else {**DTYPE_BYTES, **QUANTISED_BYTES}
    headers: dict[Path, bytes] = {}
    stored: dict[str, Stored] = {}
    table = directory / "model.safetensors.index.json"
    placed = _placement(table) if table.exists() else None
    for path in _files(directory, placed):
        headers[path] = header = _raw_header(path)
        stored |= _stored(path, header, sizes)
    for name, file in (placed or {}).items():
        tensor = stored.get(name)
        if tensor is None or tensor.file.name != file:
            raise CheckpointError(f"{directory / file} lacks tensor {name}, promised by {table}")
    return Checkpoint(directory, headers, logical_tensors(stored.values(), quantisation))


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


def _stored(path: Path, header: bytes, sizes: Mapping[str, int]) -> dict[str, Stored]:
    """`sizes`: of the dtypes that may occur, bytes of an element."""
    try:
        described = json.loads(header)
        described.pop("__metadata__", None)
        found = [
            (
                Stored(name, path, str(value["dtype"]), tuple(map(index, value["shape"]))),
                range(*value["data_offsets"]),
            )
            for name, value in described.items()
        ]
        end = max((place.stop for _, place in found), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is corrupt: its header cannot be read") from error
    expected, actual = 8 + len(header) + end, path.stat().st_size
    if actual != expected:
        fault = "truncated" if actual < expected else "corrupt"
        raise CheckpointError(f"{path} is {fault}: {actual} bytes, its header says {expected}")
    for tensor, place in found:
        size = sizes.get(tensor.dtype)
        if size is None:
            raise CheckpointError(
                f"{path}: tensor {tensor.name} is {tensor.dtype}; supported are {', '.join(sizes)}"
            )
        if len(place) != math.prod(tensor.shape) * size:
            raise CheckpointError(f"{path} is corrupt: tensor {tensor.name} has the wrong size")
    return {tensor.name: tensor for tensor, _ in found}
