"""Parts of logical tensors, from memory-mapped safetensors. Only what is asked for is read."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor

from workers.models.quantisation import GROUP, Logical, Packed, Scaled, Stored

Part: TypeAlias = tuple[slice, ...]
# The sixteen values of FP4 (E2M1) by their codes; the highest bit is the sign.
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Reader:
    """A context manager; a file is opened when it is first read. Raises what safetensors does."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._files: dict[Path, Any] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def read(self, tensor: Logical, part: Part, device: torch.device) -> Tensor:
        """One slice for each dimension. What is quantised is dequantised on `device`; what is not
        stays a view of the file."""
        match tensor:
            case Stored():
                return self._slice(tensor, part)
            case Scaled():
                return self._scaled(tensor, part, device)
            case Packed():
                return self._packed(tensor, part, device)

    def _slice(self, tensor: Stored, part: Part) -> Tensor:
        if tensor.file not in self._files:
            self._files[tensor.file] = self._stack.enter_context(
                safe_open(tensor.file, framework="pt")
            )
        file = self._files[tensor.file]
        # A slice of a scalar is refused.
        sliced: Tensor = file.get_slice(tensor.name)[part] if part else file.get_tensor(tensor.name)
        return sliced

    def _scaled(self, tensor: Scaled, part: Part, device: torch.device) -> Tensor:
        """Products in float32, as transformers makes them."""
        weight = self._slice(tensor.weight, part).to(device).float()
        whole = tuple(slice(0, size) for size in tensor.scale.shape)
        if len(whole) < 2:  # of the tensor, or of each row
            scale = self._slice(tensor.scale, whole).to(device).float()
            return weight * (scale if scale.numel() == 1 else scale[part[0], None])
        *leading, rows, columns = part
        scale = self._slice(
            tensor.scale,
            (*leading, _blocks(rows, tensor.block[0]), _blocks(columns, tensor.block[1])),
        )
        scale = scale.to(device).float()
        for dim, (asked, block) in enumerate(zip((rows, columns), tensor.block, strict=True), -2):
            if scale.shape[dim] > 1:
                spread = scale.repeat_interleave(block, dim)
                scale = spread.movedim(dim, 0)[_within(asked, block)].movedim(0, dim)
        return weight.mul_(scale)

    def _packed(self, tensor: Packed, part: Part, device: torch.device) -> Tensor:
        experts, inputs, outputs = part
        stored = (experts, outputs, _blocks(inputs, GROUP))
        blocks = self._slice(tensor.blocks, (*stored, slice(0, GROUP // 2))).to(device)
        scales = self._slice(tensor.scales, stored).to(device)
        positive = torch.tensor(_FP4, device=device)
        table = torch.cat((positive, -positive))
        codes = torch.stack((blocks & 15, blocks >> 4), dim=-1)  # the low half of a byte is first
        values = table[codes.flatten(-2).int()]  # [experts, outputs, groups, 32]
        values = torch.ldexp(values, scales.int().sub_(127)[..., None]).flatten(-2)
        return values[..., _within(inputs, GROUP)].mT


def _blocks(part: slice, block: int) -> slice:
    """The blocks that `part` touches."""
    return slice(part.start // block, math.ceil(part.stop / block))


def _within(part: slice, block: int) -> slice:
    """`part`, counted from the start of the first block that it touches."""
    start = part.start // block * block
    return slice(part.start - start, part.stop - start, part.step)
