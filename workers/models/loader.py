"""Checkpoint -> decoder, part by part from memory-mapped safetensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch
from safetensors import SafetensorError
from torch import Tensor

from workers.core.errors import CheckpointError
from workers.layers.build import Build
from workers.layers.weights import Target, Targets
from workers.models.architecture import ModelConfig
from workers.models.checkpoint import Checkpoint
from workers.models.decoder import Decoder
from workers.models.reader import Part, Reader

# Told what is being done and how far it is, 0 to 1.
Progress = Callable[[str, float], None]
# What is converted or moved at once needs room beside the weights.
CHUNK = 4 << 20  # elements


def load_decoder(
    checkpoint: Checkpoint,
    config: ModelConfig,
    build: Build,
    *,
    progress: Progress | None = None,
) -> Decoder:
    """This rank's part, converted to the dtype of the parameters on the way. Raises CheckpointError
    naming file and tensor where one is missing, of the wrong shape, or unknown to this
    architecture."""
    try:
        decoder = Decoder(config, build)
    except RuntimeError as error:  # torch has no narrower class for "out of memory" on a CPU
        raise CheckpointError(
            f"{checkpoint.directory}: no memory for the weights: {error}"
        ) from error
    targets = decoder.targets()
    check_targets(checkpoint, config, targets)
    fill(checkpoint, targets, progress)
    decoder.pack()
    return decoder


def fill(checkpoint: Checkpoint, targets: Targets, progress: Progress | None = None) -> None:
    """Read what each target asks for, in the order of the files. A target whose view is empty is
    held by another rank."""
    held = [target for target in targets if target.view.numel()]
    order = {path: number for number, path in enumerate(checkpoint.headers)}
    held.sort(key=lambda target: order[checkpoint.tensors[target.name].file])
    total = sum(target.view.numel() for target in held)
    done = 0
    with Reader() as reader, torch.no_grad():
        for target in held:
            tensor = checkpoint.tensors[target.name]
            try:
                for view, part in _chunks(target):
                    view.copy_(reader.read(tensor, part, view.device))
                    done += view.numel()
                    if progress is not None:
                        progress("loading weights", done / total)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{tensor.file} is corrupt: tensor {target.name}: {error}"
                ) from error


def _chunks(target: Target) -> Iterator[tuple[Tensor, Part]]:
    """Parts of the view as the tensor's dimensions lie, and of the tensor what goes there."""
    view = target.view.mT if target.transposed else target.view
    asked = target.part + (slice(None),) * (len(target.shape) - len(target.part))
    bounds = [part.indices(size) for part, size in zip(asked, target.shape, strict=True)]
    shape = tuple(len(range(*bound)) for bound in bounds)
    part = tuple(slice(*bound) for bound in bounds)
    if view.shape != shape:
        assert torch.broadcast_shapes(view.shape, shape) == view.shape, f"{target.name}: {shape}"
        yield view, part
        return
    start, stop, step = bounds[0]
    rows = max(CHUNK * shape[0] // view.numel(), 1)
    for row in range(0, shape[0], rows):
        last = min(start + (row + rows) * step, stop)
        yield view[row : row + rows], (slice(start + row * step, last, step), *part[1:])


def check_targets(checkpoint: Checkpoint, config: ModelConfig, targets: Targets) -> None:
    """Every rank knows every tensor, by targets with empty views where it holds nothing of it."""
    for target in targets:
        tensor = checkpoint.tensors.get(target.name)
        if tensor is None:
            files = ", ".join(str(path) for path in checkpoint.headers)
            raise CheckpointError(f"tensor {target.name} is missing from {files}")
        if tensor.shape != target.shape:
            raise CheckpointError(
                f"{tensor.file}: tensor {target.name} has shape {list(tensor.shape)}, config.json "
                f"asks for {list(target.shape)}"
            )
    known = {target.name for target in targets}
    for name, tensor in checkpoint.tensors.items():
        if name not in known and not _harmless(name, checkpoint, config):
            raise CheckpointError(
                f"{tensor.file}: tensor {name} is not part of {config.architecture} with this "
                "config.json; ignoring it would change what the model says"
            )


def _harmless(name: str, checkpoint: Checkpoint, config: ModelConfig) -> bool:
    """Tensors that older writers saved although they follow from the others, and layers that guess
    tokens ahead (DeepSeek-V3): the model speaks without them."""
    tied_head = name == f"{config.names.head}.weight" and config.tied_embeddings
    layer = re.match(r"model\.layers\.\d+\.", name)
    guesses = layer is not None and f"{layer[0]}eh_proj.weight" in checkpoint.tensors
    left_out = name.startswith(config.names.ignored) or name.endswith("rotary_emb.inv_freq")
    return tied_head or guesses or left_out
