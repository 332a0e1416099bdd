"""From a model argument to a runner that is ready: resolve, check, load, size, warm up."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from workers.attention.kv_cache import KVCache
from workers.attention.pick import pick_backend
from workers.config import EngineConfig
from workers.core.errors import ConfigError
from workers.core.runner import ModelInfo
from workers.kernels.pick import has_triton, pick_kernels
from workers.layers.build import Build
from workers.models.architecture import DTypeName, ModelConfig
from workers.models.checkpoint import open_checkpoint
from workers.models.config import load_config
from workers.models.fingerprint import kv_abi, model_fingerprint
from workers.models.loader import Progress, load_decoder
from workers.models.resolve import resolve_model
from workers.models.split import check_split
from workers.parallel.group import SINGLE, Group, Ranks
from workers.runner.cuda_graphs import CudaCapture
from workers.runner.forward import Forward
from workers.runner.memory import KV_SHARE, available_bytes, count_blocks, kv_shape
from workers.runner.model_runner import ModelRunner

log = logging.getLogger(__name__)


def prepare_torch(threads: int) -> None:
    """Set the threads of torch's operators, for this whole process."""
    torch.set_num_threads(threads)


def load_runner(
    model: str,
    config: EngineConfig,
    *,
    device: str | None = None,
    progress: Progress | None = None,
) -> ModelRunner:
    """A runner of one rank; see load_forward."""
    info, forward = load_forward(model, config, device=device, progress=progress)
    runner = ModelRunner(info, forward)
    if progress is not None:
        progress("warming up", 1.0)
    runner.warm_up()
    return runner


def load_forward(
    model: str,
    config: EngineConfig,
    *,
    ranks: Ranks = SINGLE,
    device: str | None = None,
    progress: Progress | None = None,
) -> tuple[ModelInfo, Forward]:
    """This rank's part of the model and of its pages, not warmed up. Blocking; all ranks call it
    together. `model`: a checkpoint directory or a hub id. `device` None = cuda where there is one,
    else cpu. Raises CheckpointError and ConfigError."""
    if config.threads is not None:
        prepare_torch(config.threads)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    directory = resolve_model(model)
    model_config = load_config(directory)
    redundant = config.redundant_experts
    check_split(model_config, ranks.tensor.size, ranks.experts.size, redundant)
    context_length = _context_length(config, model_config)
    # What is served: longrope chooses its factors by it.
    model_config = replace(model_config, context_length=context_length)
    checkpoint = open_checkpoint(directory)
    own = model_config.dtype or checkpoint.dtype
    dtype = own if config.dtype == "auto" else config.dtype
    precision = _torch_dtype(dtype)
    build = Build(precision, place, pick_kernels(place, precision), ranks, redundant)
    decoder = load_decoder(checkpoint, model_config, build, progress=progress)
    shape = kv_shape(model_config, ranks.tensor.size, config.block_size, build.dtype)
    free = available_bytes(place)
    if place.type == "cpu":  # ranks of one machine look at the same memory
        free //= ranks.world.size
    room = _each(config, ranks.shards.size)
    blocks = count_blocks(room, shape, context_length, free, KV_SHARE[place.type])
    blocks = _fewest(blocks, ranks.world, place)
    log.info(
        "%s: %s, %s kernels, context %d, %d KV blocks of %d tokens (%d MiB)",
        *(directory.name, dtype, build.kernels.name, context_length, blocks, config.block_size),
        blocks * shape.block_bytes >> 20,
    )
    info = ModelInfo(
        vocab_size=model_config.vocab_size,
        context_length=context_length,
        eos_token_ids=model_config.eos_token_ids,
        kv_abi=kv_abi(model_fingerprint(checkpoint), model_config, dtype, config.block_size),
        kv_bytes_per_token=kv_shape(model_config, 1, config.block_size, build.dtype).token_bytes,
        shards=ranks.shards.size,
    )
    pages = KVCache(shape, blocks, place)
    forward = Forward(decoder, pages, pick_backend(pages), ranks, step_tokens=config.step_tokens)
    # Triton's attention alone knows what to do with a graph's padding.
    if has_triton(place) and forward.capturable:
        forward.use_graphs(CudaCapture(), config.max_seqs, context_length)
    return info, forward


def _each(config: EngineConfig, shards: int) -> EngineConfig:
    """What a shard has of the replica's room."""
    tokens = None if config.kv_tokens is None else config.kv_tokens // shards
    seqs = -(-config.max_seqs // shards)
    return config.model_copy(update={"kv_tokens": tokens, "max_seqs": seqs})


def _fewest(blocks: int, world: Group, place: torch.device) -> int:
    """Of all ranks: they use the same block ids."""
    return int(world.all_gather(torch.tensor([blocks], device=place)).min())


def _context_length(config: EngineConfig, model: ModelConfig) -> int:
    if config.context_length is None:
        return model.context_length
    if config.context_length > model.context_length:
        raise ConfigError(
            f"context_length {config.context_length} is longer than the model's own, "
            f"{model.context_length}"
        )
    return config.context_length


def _torch_dtype(name: DTypeName) -> torch.dtype:
    dtypes = {
        "bfloat16": torch.bfloat16,
        "float32": torch.float32,
        "float16": torch.float16,
    }
    return dtypes[name]
