"""One rank's part of a step: inputs -> pages written, logits. Leader and followers run the same."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from workers.attention.backend import AttentionBackend
from workers.attention.context import ForwardContext
from workers.attention.kv_cache import KVCache
from workers.layers.expert_load import ExpertBalance, ExpertBalancer
from workers.layers.experts import ExpertsFeedForward
from workers.models.decoder import Decoder
from workers.parallel.group import SINGLE, Ranks
from workers.runner.cuda_graphs import Capture, DecodeGraphs
from workers.runner.inputs import StepInputs, pack, to_device
from workers.sampling.sampled import UNUSABLE


class Forward:
    """A decoder over its pages, step after step, on one thread."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        backend: AttentionBackend,
        ranks: Ranks = SINGLE,
        *,
        step_tokens: int = 2,
    ) -> None:
        """`step_tokens`: the most that a step is expected to have."""
        self.decoder = decoder
        self._step_tokens = step_tokens
        self._shards = ranks.shards.size
        self.cache = cache
        self._backend = backend
        self._ranks = ranks
        self._balancer = ExpertBalancer(decoder, ranks)
        self._graphs: DecodeGraphs | None = None
        # The next step may await them; see inputs.to_device. On followers only room for them.
        self._sampled = torch.zeros(0, dtype=torch.int64, device=cache.device)

    @torch.inference_mode()
    def run(self, parts: Sequence[StepInputs]) -> Tensor | None:
        """`parts`: of each shard. Logits [n, vocab] of the rows that sample, shard after shard, on
        the rank that leads; None on the others and where no row samples."""
        counts = [part.num_sampled for part in parts]
        if any(part.num_awaited for part in parts):  # the leader alone knows what it sampled
            self._sampled = self._ranks.world.broadcast(self._sampled)
        sampled = self._sampled
        # Should this step fail, who awaits its tokens gets what is nobody's.
        self._sampled = sampled.new_full((sum(counts),), UNUSABLE)
        logits = self._own_logits(parts[self._ranks.shards.rank], sampled)
        if len(parts) > 1 and any(counts):
            logits = self._gathered(logits, counts)
        return logits

    def balance_experts(self) -> ExpertBalance | None:
        """Between two steps, all ranks together; see ExpertBalancer."""
        return self._balancer.run()

    def keep(self, sampled: Tensor) -> None:
        """What the last step sampled, int64 [n] on the device, shard after shard: the next may
        continue with it."""
        self._sampled = sampled

    @property
    def capturable(self) -> bool:
        """Whether decode steps may be CUDA graphs: neither the host nor another rank is waited for
        in their midst."""
        mixtures = [m for m in self.decoder.modules() if isinstance(m, ExpertsFeedForward)]
        return self._ranks.world.size == 1 and all(layer.capturable for layer in mixtures)

    def use_graphs(self, capture: Capture, most_rows: int, most_tokens: int) -> None:
        """Decode steps of up to `most_rows` sequences of `most_tokens` are captured by warm_up."""
        self._graphs = DecodeGraphs(
            self.hidden,
            capture,
            most_rows=most_rows,
            most_blocks=-(-most_tokens // self.cache.shape.block_size),
            device=self.cache.device,
        )

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Steps on each shard, so that what is initialised or compiled late is so before the first
        request. All ranks together."""
        room = self.cache.num_blocks * self.cache.shape.block_size
        # Kernels for a GPU are compiled for some ranges of sizes.
        most = self._step_tokens if self.cache.device.type == "cuda" else 2
        for exponent in range(min(most, room).bit_length()):
            self.run([_first_tokens(1 << exponent, self.cache.shape.block_size)] * self._shards)
        if self._graphs is not None:
            self._graphs.capture()

    def hidden(self, context: ForwardContext, rows: Tensor | None = None) -> Tensor:
        """States [T, hidden] of every token of a step, or of `rows` alone; writes the pages of all.
        In inference mode."""
        plan = self._backend.plan(context)
        return self.decoder(context.token_ids, context.positions, plan, rows)

    def _own_logits(self, inputs: StepInputs, sampled: Tensor) -> Tensor | None:
        if not inputs.num_tokens:
            self.decoder.idle()
            return None
        context = to_device(inputs, self.cache.device, sampled)
        states = self._last_states(context)
        return self.decoder.logits(states) if inputs.num_sampled else None

    def _last_states(self, context: ForwardContext) -> Tensor:
        """States [n, hidden] of the rows that sample, or of any one row where none does."""
        states = None if self._graphs is None else self._graphs.run(context)
        if states is not None:
            return states[context.sample_rows]
        rows = context.sample_rows if context.sample_rows.numel() else context.positions[:1] * 0
        return self.hidden(context, rows)

    def _gathered(self, logits: Tensor | None, counts: list[int]) -> Tensor | None:
        """logits [n, vocab] of each shard -> all of them, in order, on the rank that leads."""
        if self._ranks.tensor.rank > 0:
            return None
        head = self.decoder.head
        own = torch.zeros(
            (max(counts), self.decoder.config.vocab_size),
            dtype=head.dtype,
            device=self.cache.device,
        )
        if logits is not None:
            own[: len(logits)] = logits
        every = self._ranks.shards.gather(own)
        if every is None:
            return None
        shards = every.split(max(counts))
        return torch.cat([rows[:count] for rows, count in zip(shards, counts, strict=True)])


def _first_tokens(count: int, block_size: int) -> StepInputs:
    """A sequence of so many tokens, in the first blocks."""
    return pack(
        token_ids=[0] * count,
        positions=list(range(count)),
        slots=list(range(count)),
        sample_rows=[count - 1],
        tables=[array("i", range(-(-count // block_size)))],
        starts=[0, count],
        lengths=[count],
    )
