"""What a rank keeps of each token. No torch: sizes are computed from config.json alone."""

from __future__ import annotations

from dataclasses import dataclass

from workers.core.errors import CheckpointError
from workers.core.span import share
from workers.models.architecture import HeadAttention, LatentAttention, ModelConfig


@dataclass(frozen=True, slots=True)
class KVLayout:
    """In each layer `sides` (key and value, or one latent that is both) of `heads` of `width`."""

    layers: int
    sides: int
    heads: int
    width: int

    @property
    def elements(self) -> int:
        """Of one token."""
        return self.layers * self.sides * self.heads * self.width


def kv_layout(config: ModelConfig, tensor_ranks: int) -> KVLayout:
    """Of each of so many ranks: heads are shared out, more ranks than heads repeat them, a latent
    is the same everywhere. Raises CheckpointError where layers differ: pages are alike in all."""
    kinds = {_of_layer(layer.attention, tensor_ranks) for layer in config.layers}
    if len(kinds) != 1:
        raise CheckpointError(
            f"{config.architecture}: layers keep KV of different sizes, which is not supported: "
            f"{', '.join(f'{heads} heads of {width}' for _, heads, width in sorted(kinds))}"
        )
    return KVLayout(len(config.layers), *kinds.pop())


def _of_layer(attention: HeadAttention | LatentAttention, ranks: int) -> tuple[int, int, int]:
    if isinstance(attention, LatentAttention):
        return 1, 1, attention.kv_rank + attention.rope_dim
    return 2, share(attention.kv_heads, 0, ranks).size, attention.head_dim
