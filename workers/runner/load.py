"""From a model argument to a runner that is ready: resolve, check, load, size, warm up."""

from __future__ import annotations

import logging

import torch

from workers.attention.kv_cache import KVCache, KVShape
from workers.attention.pick import pick_backend
from workers.config import EngineConfig
from workers.core.errors import ConfigError
from workers.core.runner import ModelInfo
from workers.kernels.pick import has_triton, pick_kernels
from workers.layers.build import Build
from workers.models.checkpoint import open_checkpoint
from workers.models.config import DTypeName, ModelConfig, load_config
from workers.models.fingerprint import kv_abi, model_fingerprint
from workers.models.loader import Progress, load_decoder
from workers.models.resolve import resolve_model
from workers.runner.cuda_graphs import CudaCapture
from workers.runner.memory import available_bytes, count_blocks
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
    """Blocking. `model`: a checkpoint directory or a hub id. `device` None = cuda where there is
    one, else cpu. Raises CheckpointError and ConfigError."""
    if config.threads is not None:
        prepare_torch(config.threads)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    directory = resolve_model(model)
    model_config = load_config(directory)
    context_length = _context_length(config, model_config)
    checkpoint = open_checkpoint(directory)
    own = model_config.dtype or checkpoint.dtype
    dtype = own if config.dtype == "auto" else config.dtype
    precision = _torch_dtype(dtype)
    build = Build(precision, place, pick_kernels(place, precision))
    decoder = load_decoder(checkpoint, model_config, build, progress=progress)
    shape = KVShape(
        layers=model_config.num_layers,
        kv_heads=model_config.num_kv_heads,
        head_dim=model_config.head_dim,
        block_size=config.block_size,
        dtype=build.dtype,
    )
    blocks = count_blocks(config, shape, context_length, available_bytes(place))
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
        kv_bytes_per_token=shape.token_bytes,
    )
    pages = KVCache(shape, blocks, place)
    runner = ModelRunner(info, decoder, pages, pick_backend(pages))
    if progress is not None:
        progress("warming up", 1.0)
    if has_triton(place):  # its attention alone knows what to do with a graph's padding
        runner.use_graphs(CudaCapture(), config.max_seqs)
    runner.warm_up()
    return runner


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
