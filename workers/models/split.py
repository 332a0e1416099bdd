"""Over how many ranks a model can be split, and why not over others. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from workers.core.errors import ConfigError
from workers.models.architecture import (
    DenseFeedForward,
    Experts,
    HeadAttention,
    LayerConfig,
    ModelConfig,
)


def check_split(config: ModelConfig, tensor: int, experts: int, redundant: int = 0) -> None:
    """Raises ConfigError where the model cannot be computed by so many ranks, or where they cannot
    have `redundant` copies of experts."""
    faults = split_faults(config, tensor, experts)
    if redundant:
        faults += tuple(_redundancy_faults(config, experts, redundant))
    if faults:
        raise ConfigError(
            f"tensor_parallel {tensor}, expert_parallel {experts}: {'; '.join(faults)}"
        )


def split_faults(config: ModelConfig, tensor: int, experts: int) -> tuple[str, ...]:
    """Reasons why `tensor` ranks cannot share heads and widths, or `experts` ranks the experts."""
    faults = {
        fault: None
        for layer in dict.fromkeys(config.layers)
        for fault in _layer_faults(layer, tensor, experts)
    }
    width = -(-config.vocab_size // tensor)
    if (tensor - 1) * width >= config.vocab_size:
        faults[f"a vocabulary of {config.vocab_size} leaves nothing to the last of {tensor}"] = None
    if max(tensor, experts) % min(tensor, experts):
        faults[f"of {tensor} and {experts} one must be a multiple of the other"] = None
    if experts > 1 and not _mixtures(config):
        faults["the model has no experts"] = None
    return tuple(faults)


def _redundancy_faults(config: ModelConfig, experts: int, redundant: int) -> Iterator[str]:
    if experts == 1:
        yield f"redundant_experts {redundant} are of use to several expert parallel ranks alone"
        return
    for count in {own.count for own in _mixtures(config)}:
        if (count + redundant) % experts:
            yield f"{experts} does not divide {count} experts and {redundant} redundant ones"
        if redundant > count * (experts - 1):
            yield f"{redundant} redundant experts are more than {experts} ranks can use"


def _mixtures(config: ModelConfig) -> list[Experts]:
    return [own for layer in config.layers if isinstance(own := layer.feed_forward, Experts)]


def _layer_faults(layer: LayerConfig, tensor: int, experts: int) -> Iterator[str]:
    attention, feed_forward = layer.attention, layer.feed_forward
    if attention.heads % tensor:
        yield f"{tensor} does not divide {attention.heads} attention heads"
    if isinstance(attention, HeadAttention):
        kv_heads = attention.kv_heads
        if kv_heads % tensor and tensor % kv_heads:
            yield f"of {tensor} and {kv_heads} key/value heads one must be a multiple of the other"
    if isinstance(feed_forward, DenseFeedForward):
        if feed_forward.width % tensor:
            yield f"{tensor} does not divide the feed-forward width {feed_forward.width}"
        return
    if feed_forward.count % experts:
        yield f"{experts} does not divide {feed_forward.count} experts"
    if experts > 1:
        return  # they are whole, and so are the shared ones
    if feed_forward.width % tensor:
        yield f"{tensor} does not divide the expert width {feed_forward.width}"
    if feed_forward.shared_width % tensor:
        yield f"{tensor} does not divide the shared experts' width {feed_forward.shared_width}"
