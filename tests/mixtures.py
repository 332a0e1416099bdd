"""One layer of experts of each family, as transformers has it, saves it and computes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from workers.kernels.api import Kernels
from workers.kernels.torch_kernels import TorchKernels
from workers.layers.build import Build
from workers.layers.experts import ExpertsFeedForward
from workers.layers.weights import Packs, Targets
from workers.models.architecture import Experts
from workers.models.checkpoint import open_checkpoint
from workers.models.config import load_config
from workers.models.loader import fill
from workers.parallel.group import SINGLE, Ranks

HIDDEN, WIDTH, COUNT, TOKENS = 32, 24, 8, 29
COMMON = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "vocab_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "intermediate_size": WIDTH,
    "num_experts_per_tok": 3,
    "initializer_range": 0.3,
}
QWEN3 = {"num_experts": COUNT, "moe_intermediate_size": WIDTH, "head_dim": 8}
DEEPSEEK = {
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "moe_intermediate_size": WIDTH,
    "first_k_dense_replace": 0,
    "n_routed_experts": COUNT,
    "n_shared_experts": 2,
    "routed_scaling_factor": 2.5,
}
GROUPS = DEEPSEEK | {"n_group": 4, "topk_group": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": COUNT, "num_experts_per_tok": 2}),
    "qwen3-moe": ("Qwen3Moe", QWEN3 | {"norm_topk_prob": True}),
    "qwen3-moe-raw": ("Qwen3Moe", QWEN3 | {"norm_topk_prob": False}),
    "deepseek-v2-lite": ("DeepseekV2", DEEPSEEK | {"topk_method": "greedy"}),
    "deepseek-v2": ("DeepseekV2", GROUPS | {"topk_method": "group_limited_greedy"}),
    "deepseek-v3": ("DeepseekV3", GROUPS | {"norm_topk_prob": True}),
    "gpt-oss": ("GptOss", {"num_local_experts": COUNT, "head_dim": 8}),
}


@dataclass(frozen=True)
class Mixture:
    block: nn.Module  # transformers'
    directory: Path  # its checkpoint

    def __call__(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden] as transformers computes it."""
        with torch.inference_mode():
            out = self.block(x[None])
        return (out if isinstance(out, Tensor) else out[0])[0]

    @property
    def config(self) -> Experts:
        config = load_config(self.directory).layers[0].feed_forward
        assert isinstance(config, Experts)
        return config

    @property
    def prefix(self) -> str:
        return f"model.layers.0.{load_config(self.directory).names.feed_forward}"

    def new(self, build: Build) -> tuple[ExpertsFeedForward, Targets]:
        """Ours, without weights, and where they go."""
        names = load_config(self.directory).names.experts
        layer = ExpertsFeedForward(self.config, HIDDEN, names, build)
        return layer, layer.targets(self.prefix)

    def ours(
        self,
        ranks: Ranks = SINGLE,
        *,
        redundant: int = 0,
        dtype: torch.dtype = torch.float32,
        kernels: Kernels | None = None,
    ) -> ExpertsFeedForward:
        cpu = torch.device("cpu")
        layer, targets = self.new(Build(dtype, cpu, kernels or TorchKernels(), ranks, redundant))
        fill(open_checkpoint(self.directory), targets)
        for module in layer.modules():
            if isinstance(module, Packs):
                module.pack()
        return layer


class Mixtures:
    """By family, each made once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[str, Mixture] = {}

    def __getitem__(self, family: str) -> Mixture:
        if family not in self._made:
            self._made[family] = _make(family, self._directory / family)
        return self._made[family]


def _make(family: str, directory: Path) -> Mixture:
    torch.manual_seed(0)
    name, fields = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**COMMON | fields)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for key, tensor in model.state_dict().items():
        if "correction" in key or key.endswith("bias"):
            nn.init.normal_(tensor, std=0.3)  # they begin as zeros
    model.save_pretrained(directory)
    return Mixture(model.model.layers[0].mlp, directory)


def tokens(count: int = TOKENS, seed: int = 1) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))
