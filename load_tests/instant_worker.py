"""A worker whose steps take no time: everything of a real one but the model.

    python -m load_tests.instant_worker --config worker.json

The config is that of `python -m workers`; of the model only config.json and the tokenizer are read.
Tokens say nothing: the id of each follows from its position.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from workers.__main__ import _parser, read_config
from workers.config import TransportConfig, WorkerConfig
from workers.core.batch import Batch, StepOutput
from workers.core.request import SampledToken
from workers.core.runner import ModelInfo
from workers.core.sim_runner import SLOT_BYTES, SimPages
from workers.core.span import whole
from workers.launch import run_worker
from workers.transfer.link import Transport
from workers.transfer.port import LocalPort, Ports
from workers.transfer.threads import on_thread

KV_TOKENS = 1 << 20  # where the config does not say
FIRST_ID, IDS = 1000, 1000  # tokens are taken from these ids; a small vocabulary has fewer


class InstantRunner:
    """Implements workers.core.runner.Runner."""

    on_gpu = False

    def __init__(self, config: WorkerConfig) -> None:
        model = json.loads((Path(config.model) / "config.json").read_text())
        block_size = config.engine.block_size
        blocks = (config.engine.kv_tokens or KV_TOKENS) // block_size
        self.pages = SimPages(blocks, block_size)
        self.info = ModelInfo(
            vocab_size=model["vocab_size"],
            context_length=model["max_position_embeddings"],
            eos_token_ids=(),
            kv_abi="instant",
            kv_bytes_per_token=SLOT_BYTES,
        )

    async def execute(self, batch: Batch) -> StepOutput:
        await asyncio.sleep(0)
        return StepOutput(tuple(self._token(c.end) for c in batch.chunks if c.sample))

    def _token(self, position: int) -> SampledToken:
        token = (FIRST_ID + position % IDS) % self.info.vocab_size
        return SampledToken(token, position=position)

    async def ports(
        self, transports: Sequence[Transport], config: TransportConfig, host: str
    ) -> Ports:
        port = LocalPort(self.pages, whole(1), transports, on_thread)
        return Ports(((port,),), 1, self.pages.block_bytes)

    async def close(self) -> None:
        return None


def main() -> int:
    logging.basicConfig(level=logging.WARNING)
    config = read_config(_parser().parse_args())
    asyncio.run(run_worker(config, load=InstantRunner))
    return 0


if __name__ == "__main__":
    sys.exit(main())
