"""What a model is made of, as its family reads it from config.json. Plain data: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DTypeName = Literal["bfloat16", "float32", "float16"]
RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
Activation = Literal["silu", "gelu_tanh", "clamped_silu"]
Score = Literal["softmax", "sigmoid", "softmax_of_chosen"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Only `theta` counts for every kind; the rest belongs to linear, llama3, yarn and longrope."""

    kind: RopeKind = "default"
    theta: float = 10_000.0
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    long_factors: tuple[float, ...] = ()
    short_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class HeadAttention:
    """Grouped-query attention. `scale` multiplies scores, None: head_dim ** -0.5. `window`: how
    many tokens a query sees, its own included; None: all before it. `rotated` leading dimensions of
    a head are rotated (None: all). `sinks`: each head has a logit that joins the softmax's sum."""

    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeConfig
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    scale: float | None = None
    window: int | None = None
    rotated: int | None = None
    sinks: bool = False


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, 2024): pages hold one latent of `kv_rank` and one
    rotated key of `rope_dim` a token, for all heads. `query_rank` None: queries are not
    compressed. `interleaved`: rotation pairs neighbours, not halves."""

    heads: int
    query_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    rope: RopeConfig
    bias: bool = False
    scale: float | None = None  # None: (nope_dim + rope_dim) ** -0.5
    interleaved: bool = True


@dataclass(frozen=True, slots=True)
class DenseFeedForward:
    """Gated: activation(gate) * up, then down."""

    width: int
    activation: Activation = "silu"
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """Mixture of experts: `active` of `count` per token, each a gated network `width` wide.

    `score`: what router logits become before the choice; softmax_of_chosen: the largest logits are
    chosen and softmax is over those. `normalise`: chosen weights are made to sum to 1; `scale`
    multiplies them. Grouped choice (DeepSeek): of `groups` groups of experts only the best
    `active_groups` may be chosen from; a group's worth is its best `group_best` scores summed.
    `correction`: a learnt bias joins scores for the choice alone. `shared_width`: of the experts
    that every token goes through, as one; 0: there is none.
    """

    count: int
    active: int
    width: int
    activation: Activation = "silu"
    score: Score = "softmax"
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    active_groups: int = 1
    group_best: int = 1
    correction: bool = False
    router_bias: bool = False
    bias: bool = False
    shared_width: int = 0


@dataclass(frozen=True, slots=True)
class LayerConfig:
    attention: HeadAttention | LatentAttention
    feed_forward: DenseFeedForward | Experts


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Where a checkpoint keeps a layer's experts, below the feed-forward's prefix: linear layers,
    whose names go on with .weight (and .bias). `{e}`: number of the expert. `shared` holds
    gate_proj, up_proj and down_proj of the shared experts."""

    router: str = "gate"
    gate: str = "experts.{e}.gate_proj"
    up: str = "experts.{e}.up_proj"
    down: str = "experts.{e}.down_proj"
    correction: str = "gate.e_score_correction_bias"
    shared: str = "shared_experts."


@dataclass(frozen=True, slots=True)
class FusedExpertNames:
    """One tensor for all experts, [experts, inputs, outputs], the names of biases end in _bias;
    outputs of gate and up take turns (gpt-oss)."""

    router: str = "router"
    gate_up: str = "experts.gate_up_proj"
    down: str = "experts.down_proj"


@dataclass(frozen=True, slots=True)
class Names:
    """What a checkpoint calls its tensors, where families differ; the default is Llama's way. What
    ends in a dot is a prefix. Projections of one name are rows of one tensor, top to bottom."""

    model: str = "model."
    head: str = "lm_head"
    attention: str = "self_attn."
    feed_forward: str = "mlp."
    attention_norm: str = "input_layernorm"
    feed_forward_norm: str = "post_attention_layernorm"
    attention_post_norm: str = ""
    feed_forward_post_norm: str = ""
    qkv: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    output: str = "o_proj"
    gate_up: tuple[str, str] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    experts: ExpertNames | FusedExpertNames = ExpertNames()
    ignored: tuple[str, ...] = ()  # prefixes of what text is made without (vision towers)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """`post_norms`: outputs of attention and feed-forward are normalised too, before they are added
    (Gemma). `unit_offset`: norm weights are stored as their distance from 1 (Gemma)."""

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerConfig, ...]
    rms_norm_eps: float
    context_length: int
    tied_embeddings: bool
    dtype: DTypeName | None  # None: config.json does not say, the weights do
    eos_token_ids: tuple[int, ...]
    embedding_scale: float = 1.0
    post_norms: bool = False
    unit_offset: bool = False
    names: Names = Names()
