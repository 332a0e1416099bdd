"""Quantised checkpoints: what config.json says of them, and which of their tensors belong together.

They are dequantised when they are loaded. What is not known here is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from workers.core.errors import CheckpointError

METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "mxfp4")
# How compressed-tensors writes 8-bit floats; the second is what it called it at first.
FLOAT_FORMATS = ("float-quantized", "naive-quantized")
WEIGHT = "F8_E4M3"
SCALES = ("F32", "BF16", "F16")
GROUP = 32  # elements that share a scale in MXFP4, two to a byte
# What belongs to quantised activations or KV pages, of which we have none.
ACTIVATIONS = (
    *(".input_scale", ".activation_scale", ".output_scale"),
    *(".k_scale", ".v_scale", ".q_scale", ".prob_scale"),
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in a file; `dtype` as safetensors spells it."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scaled:
    """FP8: each block of `weight`, so many rows and columns, times its element of `scale`."""

    weight: Stored
    scale: Stored
    block: tuple[int, int]

    @property
    def file(self) -> Path:
        return self.weight.file

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape


@dataclass(frozen=True, slots=True)
class Packed:
    """MXFP4 (OCP Microscaling Formats, 2023): `blocks` [experts, outputs, groups, 16], two elements
    a byte, times 2 ** (`scales` [experts, outputs, groups] - 127). It stands for
    [experts, inputs, outputs]: so transformers lays the experts of gpt-oss out."""

    blocks: Stored
    scales: Stored

    @property
    def file(self) -> Path:
        return self.blocks.file

    @property
    def shape(self) -> tuple[int, ...]:
        experts, outputs, groups, _ = self.blocks.shape
        return experts, groups * GROUP, outputs


Logical: TypeAlias = Stored | Scaled | Packed


@dataclass(frozen=True, slots=True)
class Quantisation:
    """`block`: rows and columns that share a scale; None: a tensor or each of its rows does."""

    method: str
    block: tuple[int, int] | None = None


def read_quantisation(config: Mapping[str, Any], path: Path) -> Quantisation | None:
    """From the config.json at `path`; None: its weights are plain. Raises CheckpointError."""
    values = config.get("quantization_config", config.get("compression_config"))
    if values is None:
        return None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: quantization_config must be an object, not {values!r}")
    method = values.get("quant_method")
    match method:
        case "mxfp4" | "fbgemm_fp8":
            return Quantisation(method)
        case "fp8":
            if values.get("fmt", "e4m3") != "e4m3":
                raise CheckpointError(f"{path}: quantization_config.fmt must be 'e4m3'")
            return Quantisation(method, _block(values.get("weight_block_size"), path))
        case "compressed-tensors":
            return _compressed(values, path)
    raise CheckpointError(
        f"{path}: quantization_config.quant_method {method!r} is not supported; supported are "
        f"{', '.join(METHODS)}"
    )


def _compressed(values: dict[str, Any], path: Path) -> Quantisation:
    form = values.get("format")
    if form not in FLOAT_FORMATS:
        raise CheckpointError(
            f"{path}: quantization_config.format {form!r} is not supported; supported are "
            f"{', '.join(FLOAT_FORMATS)}"
        )
    if (values.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise CheckpointError(f"{path}: quantization_config.sparsity_config is not supported")
    blocks: set[tuple[int, int] | None] = set()
    for name, group in (values.get("config_groups") or {}).items():
        weights = group.get("weights") or {}
        kind = (weights.get("type"), weights.get("num_bits"), weights.get("symmetric", True))
        if kind != ("float", 8, True):
            raise CheckpointError(
                f"{path}: quantization_config.config_groups.{name}.weights must be symmetric "
                f"floats of 8 bits"
            )
        blocks.add(_block(weights.get("block_structure"), path))
    if len(blocks) != 1:
        raise CheckpointError(f"{path}: quantization_config.config_groups must agree on blocks")
    return Quantisation("compressed-tensors", blocks.pop())


def _block(value: object, path: Path) -> tuple[int, int] | None:
    match value:
        case None:
            return None
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    raise CheckpointError(f"{path}: a block of weights must be [rows, columns], not {value!r}")


def logical_tensors(
    stored: Iterable[Stored], quantisation: Quantisation | None
) -> dict[str, Logical]:
    """By their plain names, as in a checkpoint that was never quantised. A tensor that the writer
    left alone is itself. Raises CheckpointError where parts of one do not fit together."""
    tensors = {tensor.name: tensor for tensor in stored}
    if quantisation is None:
        return dict(tensors)
    join = _packed if quantisation.method == "mxfp4" else _scaled
    joined = (join(tensor, tensors, quantisation) for tensor in tensors.values())
    return dict(pair for pair in joined if pair is not None)


def _packed(
    tensor: Stored, tensors: dict[str, Stored], quantisation: Quantisation
) -> tuple[str, Logical] | None:
    """The tensor's plain name and what it is; None: a part of another."""
    name = tensor.name
    if tensor.dtype != "U8":
        return name, tensor
    plain, _, part = name.rpartition("_")
    other = {"blocks": f"{plain}_scales", "scales": f"{plain}_blocks"}.get(part)
    if other not in tensors:
        raise CheckpointError(f"{tensor.file}: tensor {name} is U8, but there is no {other}")
    if part == "scales":
        return None
    scales = tensors[other]
    fits = len(tensor.shape) == 4 and tensor.shape[-1] == GROUP // 2
    if not fits or tensor.shape[:-1] != scales.shape or scales.dtype != "U8":
        raise CheckpointError(
            f"{tensor.file}: tensors {name} {list(tensor.shape)} and {other} {scales.dtype} "
            f"{list(scales.shape)} are not MXFP4"
        )
    return plain, Packed(tensor, scales)


def _scaled(
    tensor: Stored, tensors: dict[str, Stored], quantisation: Quantisation
) -> tuple[str, Logical] | None:
    """The tensor's plain name and what it is; None: a part of another."""
    name = tensor.name
    if name.endswith(ACTIVATIONS):
        return None
    if tensor.dtype != WEIGHT:
        scaled = tensors.get(name.removesuffix("_scale_inv").removesuffix("_scale"))
        return None if scaled is not None and scaled.dtype == WEIGHT else (name, tensor)
    scale = tensors.get(f"{name}_scale_inv") or tensors.get(f"{name}_scale")
    if scale is None:
        raise CheckpointError(f"{tensor.file}: tensor {name} is {WEIGHT}, but has no scale")
    block = _shared_by(scale.shape, tensor.shape, quantisation.block)
    if block is None or scale.dtype not in SCALES:
        raise CheckpointError(
            f"{tensor.file}: scale {scale.name} {scale.dtype} {list(scale.shape)} does not fit "
            f"tensor {name} {list(tensor.shape)}"
        )
    return name, Scaled(tensor, scale, block)


def _shared_by(
    scale: tuple[int, ...], weight: tuple[int, ...], block: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Rows and columns that share an element of the scale; None: it does not fit the weight."""
    if len(weight) < 2:
        return None
    *leading, rows, columns = weight
    if scale in ((), (1,)):
        return rows, columns
    if block is not None and scale == (*leading, -(-rows // block[0]), -(-columns // block[1])):
        return block
    if block is None and not leading and scale == (rows,):
        return 1, columns
    shapes = {(*leading, 1, 1): (rows, columns), (*leading, rows, 1): (1, columns)}
    return shapes.get(scale) if block is None else None
