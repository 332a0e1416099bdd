"""Checkpoint -> decoder, tensor by tensor from memory-mapped safetensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from safetensors import SafetensorError, safe_open

from workers.core.errors import CheckpointError
from workers.layers.build import Build
from workers.layers.weights import Targets
from workers.models.checkpoint import Checkpoint
from workers.models.config import ModelConfig
from workers.models.decoder import Decoder

# Told what is being done and how far it is, 0 to 1.
Progress = Callable[[str, float], None]


def load_decoder(
    checkpoint: Checkpoint,
    config: ModelConfig,
    build: Build,
    *,
    progress: Progress | None = None,
) -> Decoder:
    """Weights are converted to the build's dtype on the way. Raises CheckpointError naming file and
    tensor where one is missing, of the wrong shape, or unknown to this architecture."""
    try:
        decoder = Decoder(config, build)
    except RuntimeError as error:  # torch has no narrower class for "out of memory" on a CPU
        raise CheckpointError(
            f"{checkpoint.directory}: no memory for the weights: {error}"
        ) from error
    targets = decoder.targets()
    _check(checkpoint, config, targets)
    total = sum(target.view.numel() for target in targets.values())
    done = 0
    for path in checkpoint.headers:
        names = [name for name in targets if checkpoint.tensors[name].file == path]
        try:
            with safe_open(path, framework="pt") as file, torch.no_grad():
                for name in names:
                    targets[name].view.copy_(file.get_tensor(name))
                    done += targets[name].view.numel()
                    if progress is not None:
                        progress("loading weights", done / total)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is corrupt: {error}") from error
    decoder.pack()
    return decoder


def _check(checkpoint: Checkpoint, config: ModelConfig, targets: Targets) -> None:
    for name, target in targets.items():
        entry = checkpoint.tensors.get(name)
        if entry is None:
            files = ", ".join(str(path) for path in checkpoint.headers)
            raise CheckpointError(f"tensor {name} is missing from {files}")
        if entry.shape != target.shape:
            raise CheckpointError(
                f"{entry.file}: tensor {name} has shape {list(entry.shape)}, config.json asks for "
                f"{list(target.shape)}"
            )
    for name, entry in checkpoint.tensors.items():
        if name not in targets and not _harmless(name, config):
            raise CheckpointError(
                f"{entry.file}: tensor {name} is not part of {config.architecture} with this "
                "config.json; ignoring it would change what the model says"
            )


def _harmless(name: str, config: ModelConfig) -> bool:
    """Tensors that older writers saved although they follow from the others."""
    tied_head = name == "lm_head.weight" and config.tied_embeddings
    return tied_head or name.endswith("rotary_emb.inv_freq")
