"""The identity of KV: two workers may share blocks if, and only if, their kv_abi strings agree."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from workers.models.architecture import (
    DTypeName,
    HeadAttention,
    LatentAttention,
    ModelConfig,
    RopeConfig,
)
from workers.models.checkpoint import Checkpoint

EDGE_BYTES = 1 << 20


def model_fingerprint(checkpoint: Checkpoint) -> str:
    """32 hex digits over config.json and, of each weights file, the header, the size, and the first
    and last MiB: reading terabytes of weights would take longer than loading them."""
    digest = blake2b(digest_size=16)
    _feed(digest, (checkpoint.directory / "config.json").read_bytes())
    for path, header in checkpoint.headers.items():
        size = path.stat().st_size
        _feed(digest, header)
        _feed(digest, size.to_bytes(8, "little"))
        _feed(digest, _read(path, 0))
        _feed(digest, _read(path, max(0, size - EDGE_BYTES)))
    return digest.hexdigest()


def kv_abi(fingerprint: str, config: ModelConfig, dtype: DTypeName, block_size: int) -> str:
    """Never says how many ranks hold the KV, nor in which order pages lie; windows and sinks are
    about its readers."""
    kept = {_kept(layer.attention): None for layer in config.layers}
    ropes = {_rope(layer.attention.rope, config): None for layer in config.layers}
    return (
        f"kv1/{fingerprint}/{dtype}/block={block_size}/layers={len(config.layers)}"
        f"/{'+'.join(kept)}/rope={'+'.join(ropes)}"
    )


def _kept(attention: HeadAttention | LatentAttention) -> str:
    if isinstance(attention, LatentAttention):
        return f"latent={attention.kv_rank}+{attention.rope_dim}"
    return f"heads={attention.kv_heads}x{attention.head_dim}"


def _rope(rope: RopeConfig, config: ModelConfig) -> str:
    text = f"{rope.kind}:{rope.theta:g}:{rope.factor:g}:{rope.original_context}"
    if rope.kind != "longrope":
        return text
    # Which of its factors are taken follows from the context that is served.
    return f"{text}:{'long' if config.context_length > rope.original_context else 'short'}"


def _read(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(EDGE_BYTES)


def _feed(digest: blake2b, data: bytes) -> None:
    """With its length, so that no two lists of fields read the same."""
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)
