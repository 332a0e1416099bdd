"""Multi-head latent attention (DeepSeek-V2, 2024) in its absorbed form: pages hold one latent and
one rotated key a token, and the matrices that would make keys and values of each head from latents
are multiplied with queries and with results instead."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workers.attention.backend import AttentionPlan, Scores
from workers.core.span import share, whole
from workers.kernels.api import Kernels
from workers.layers.build import Build
from workers.layers.linear import Linear
from workers.layers.norm import RMSNorm
from workers.layers.rotary import Rotation
from workers.layers.weights import Target, Targets
from workers.models.architecture import LatentAttention

EPS = 1e-6  # of the norms of latents, whatever the family's other norms have


class LatentAttentionLayer(nn.Module):
    """A rank holds neighbouring query heads; every rank computes the latents of all tokens and has
    them in its pages: [latent of kv_rank, normalised; rotated key of rope_dim]."""

    def __init__(self, layer: int, config: LatentAttention, hidden: int, build: Build) -> None:
        super().__init__()
        self._ranks = ranks = build.ranks.tensor
        self._heads = heads = share(config.heads, ranks.rank, ranks.size)
        self.layer, self.config = layer, config
        states, rank = whole(hidden), config.query_rank
        queries = heads.of(config.nope_dim + config.rope_dim)
        self.query_down = self.query_norm = None
        if rank is None:
            self.query = Linear(states, [("q_proj", queries)], build, bias=False)
        else:
            compressed = [("q_a_proj", whole(rank))]
            self.query_down = Linear(states, compressed, build, bias=config.bias)
            self.query_norm = RMSNorm(rank, EPS, build)
            self.query = Linear(whole(rank), [("q_b_proj", queries)], build, bias=False)
        pages = whole(config.kv_rank + config.rope_dim)
        outputs = [("kv_a_proj_with_mqa", pages)]
        self.latent = Linear(states, outputs, build, bias=config.bias)
        self.latent_norm = RMSNorm(config.kv_rank, EPS, build)
        self.expansion = Expansion(config, build)
        values = heads.of(config.value_dim)
        self.output = Linear(values, [("o_proj", states)], build, bias=config.bias)
        scale = (config.nope_dim + config.rope_dim) ** -0.5
        self._scores = Scores(
            scale if config.scale is None else config.scale, value_dim=config.kv_rank
        )
        self._kernels = build.kernels

    def forward(
        self, x: Tensor, rotation: Rotation, plan: AttentionPlan, rows: Tensor | None
    ) -> Tensor:
        """x: [T, hidden] -> [T, hidden], or [n, hidden] of these rows alone."""
        nope, rope, kv_rank = self.config.nope_dim, self.config.rope_dim, self.config.kv_rank
        heads = self._heads.size
        latent, key = self.latent(x).split((kv_rank, rope), dim=1)
        latent = self.latent_norm(None, latent.contiguous())
        query, turned = self._queries(x).view(-1, heads, nope + rope).split((nope, rope), dim=2)
        # What is rotated of queries and of the one key are heads of one tensor.
        turned = torch.cat((turned, key[:, None]), dim=1)
        turned = self._kernels.rotate(turned, rotation.cos, rotation.sin, None, EPS)
        query = torch.cat((self.expansion.keys(query), turned[:, :heads]), dim=2)
        pages = torch.cat((latent[:, None], turned[:, heads:]), dim=2)
        out = plan.attend(self.layer, query, pages, None, self._scores)  # [T, heads, kv_rank]
        out = self.expansion.values(out if rows is None else out[rows]).flatten(1)
        return self._ranks.all_reduce(self.output(out))

    def _queries(self, x: Tensor) -> Tensor:
        if self.query_down is not None and self.query_norm is not None:
            x = self.query_norm(None, self.query_down(x))
        return self.query(x)

    def pack(self) -> None:
        """Before the linears pack their own. Rows of what is rotated are reordered from neighbours
        that turn together to halves, as everywhere here: products of queries and keys stay."""
        if not self.config.interleaved:
            return
        nope, rope, kv_rank = self.config.nope_dim, self.config.rope_dim, self.config.kv_rank
        assert self.query.weight is not None and self.latent.weight is not None, "packed already"
        by_halves(self.query.weight.data.unflatten(0, (-1, nope + rope))[:, nope:])
        by_halves(self.latent.weight.data[None, kv_rank:])
        if self.latent.bias is not None:
            by_halves(self.latent.bias.data[None, kv_rank:])

    def targets(self, prefix: str) -> Targets:
        targets = self.query.targets(prefix) + self.latent.targets(prefix)
        if self.query_down is not None and self.query_norm is not None:
            targets += self.query_down.targets(prefix)
            targets += self.query_norm.targets(f"{prefix}q_a_layernorm")
        targets += self.latent_norm.targets(f"{prefix}kv_a_layernorm")
        targets += self.expansion.targets(prefix)
        return targets + self.output.targets(prefix)


def by_halves(x: Tensor) -> None:
    """[heads, D, ...] in place: the even ones of D first, then the odd ones."""
    x.copy_(torch.cat((x[:, 0::2], x[:, 1::2]), dim=1))


class Expansion(nn.Module):
    """kv_b_proj, which makes keys and values of each head from a latent: its key half meets the
    queries, its value half what attention has mixed of latents."""

    def __init__(self, config: LatentAttention, build: Build) -> None:
        super().__init__()
        ranks = build.ranks.tensor
        self._heads = share(config.heads, ranks.rank, ranks.size)
        self._nope, self._kernels = config.nope_dim, build.kernels
        width = config.nope_dim + config.value_dim
        self.weight: Tensor | None = build.parameter(self._heads.size, width, config.kv_rank)

    def keys(self, query: Tensor) -> Tensor:
        """[T, heads, nope_dim] -> [T, heads, kv_rank]"""
        return self._keys(query)

    def values(self, mixed: Tensor) -> Tensor:
        """[T, heads, kv_rank] -> [T, heads, value_dim]"""
        return self._values(mixed)

    def pack(self) -> None:
        assert self.weight is not None, "packed twice"
        keys, values = self.weight.data.tensor_split((self._nope,), dim=1)
        self._keys = HeadProduct(keys.mT, self._kernels)
        self._values = HeadProduct(values, self._kernels)
        self.weight = None

    def targets(self, prefix: str) -> Targets:
        assert self.weight is not None, "packed already"
        heads, width, kv_rank = self.weight.shape
        rows, view = self._heads.of(width), self.weight.data.view(heads * width, kv_rank)
        shape = (rows.total, kv_rank)
        return [Target(f"{prefix}kv_b_proj.weight", view, shape, (rows.part,))]


class HeadProduct:
    """y[:, h] = x[:, h] W[h]^T, for weight [heads, outputs, inputs]."""

    def __init__(self, weight: Tensor, kernels: Kernels) -> None:
        self._shape = weight.shape[:2]
        products = [kernels.pack(head.contiguous(), None) for head in weight]
        self._products = [product for product in products if product is not None]
        # One batched product where nothing is gained by packing.
        self._weight = None if self._products else weight.mT

    def __call__(self, x: Tensor) -> Tensor:
        """[T, heads, inputs] -> [T, heads, outputs]"""
        if self._weight is not None:
            return torch.bmm(x.transpose(0, 1), self._weight).transpose(0, 1)
        out = x.new_empty(len(x), *self._shape)
        for head, product in enumerate(self._products):
            out[:, head] = product(x[:, head])
        return out
