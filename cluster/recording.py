"""What routers say of their requests, written down as a trace (load_tests/traces/README.md)."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import secrets
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.access import NOTHING, Access
from cluster.admin_client import follow_record
from workers.core.errors import ConfigError, Unavailable
from workers.wire import admin_pb2 as admin
from workers.wire import common_pb2 as common

SALT_BYTES = 32
FLUSH_S = 2.0
AGAIN_S = 1.0  # after a router went away
KNOWN = 1000  # requests of a class that stand for those whose sizes nobody knows


class JsonLines:
    """A new file, one object a line; packed where its name ends with .gz. Raises ConfigError."""

    def __init__(self, path: Path) -> None:
        try:
            self._raw = path.open("xb")
        except FileExistsError:
            raise ConfigError(f"{path} is there already") from None
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None
        packed = gzip.GzipFile(fileobj=self._raw, mode="wb") if path.suffix == ".gz" else None
        self._text = io.TextIOWrapper(packed or self._raw, encoding="utf-8")
        self.count = 0

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._text.close()
        self._raw.close()  # gzip leaves open what it was given

    def write(self, row: dict[str, Any]) -> None:
        self._text.write(json.dumps(row, separators=(",", ":")) + "\n")
        self.count += 1

    def flush(self) -> None:
        """What was written so far survives us."""
        self._text.flush()
        self._raw.flush()


class Recorder:
    """Follows routers until it is cancelled. They hash with one salt, which nobody keeps."""

    def __init__(
        self, requests: JsonLines, steps: JsonLines | None, access: Access = NOTHING
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.guessed = 0
        self.lost = 0  # rows that we were too slow for
        self.gaps = 0  # times that a router was not heard for a while
        self._requests = requests
        self._steps = steps
        self._access = access
        self._salt = secrets.token_bytes(SALT_BYTES)
        self._sizes: dict[str, deque[tuple[int, int]]] = defaultdict(lambda: deque(maxlen=KNOWN))

    async def run(self, routers: Sequence[str], all_heard: asyncio.Event) -> None:
        """Raises Unavailable where one does not answer at first; one that goes away later is asked
        again. `all_heard` is set when nothing is missed any more."""
        missing = set(routers)

        def heard(router: str) -> None:
            missing.discard(router)
            if not missing:
                all_heard.set()

        try:
            async with asyncio.TaskGroup() as tasks:
                for router in routers:
                    # all workers report their steps to every router: one will do
                    steps = self._steps is not None and router == routers[0]
                    tasks.create_task(self._follow(router, steps, heard))
                tasks.create_task(self._flush())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _follow(self, router: str, steps: bool, heard: Callable[[str], None]) -> None:
        known = False
        while True:
            lost, asked = 0, admin.RecordRequest(salt=self._salt, steps=steps)
            try:
                async with aclosing(follow_record(router, asked, self._access)) as batches:
                    async for batch in batches:
                        known = True
                        heard(router)
                        self.lost, lost = self.lost + batch.lost - lost, batch.lost
                        self._write(batch)
            except Unavailable:
                if not known:
                    raise
            self.gaps += 1
            await asyncio.sleep(AGAIN_S)

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            for lines in (self._requests, self._steps):
                if lines is not None:
                    lines.flush()

    def _write(self, batch: admin.RecordedBatch) -> None:
        for request in batch.requests:
            self.outcomes[request.outcome] += 1
            self._requests.write(self._request_row(request))
        if self._steps is not None:
            for step in batch.steps:
                self._steps.write(_step_row(step))

    def _request_row(self, request: admin.RecordedRequest) -> dict[str, Any]:
        """Who was not let in was load all the same: it is taken for a usual one of its class."""
        sizes = self._sizes[request.slo_class]
        input_length, output_length = request.prompt_tokens, request.output_tokens
        if request.outcome == "ok":
            sizes.append((input_length, output_length))
        guess = not request.let_in
        if guess:
            self.guessed += 1
            usual = [int(statistics.median(column)) for column in zip(*sizes, strict=True)]
            usual_input, usual_output = usual or (1, request.max_tokens or 1)
            input_length = input_length or usual_input
            output_length = min(usual_output, request.max_tokens or usual_output)
        return {
            "timestamp_ms": round(request.arrived * 1000),
            "input_length": input_length,
            "output_length": output_length,
            "hash_ids": list(request.hashes) if request.block_size else None,
            "block_size": request.block_size,
            "slo_class": request.slo_class,
            "tenant": request.tenant,
            "cached_tokens": request.cached_tokens,
            "ttft_ms": _ms(request.ttft_s) if request.HasField("ttft_s") else None,
            "itl_ms": _ms(request.itl_s) if request.HasField("itl_s") else None,
            "outcome": request.outcome,
            "guessed": guess,
        }


def _step_row(row: admin.RecordedStep) -> dict[str, Any]:
    step = row.step
    return {
        "timestamp_ms": round(row.reported * 1000),
        "replica": row.replica,
        "role": common.Role.Name(row.role).removeprefix("ROLE_").lower(),
        "hardware": row.hardware,
        "tensor_ranks": row.tensor_ranks,
        "expert_ranks": row.expert_ranks,
        "kv_abi": row.kv_abi,
        "prefill_tokens": step.prefill_tokens,
        "prefill_kv": step.prefill_kv,
        "prefill_pairs": step.prefill_pairs,
        "decode_seqs": step.decode_seqs,
        "decode_kv": step.decode_kv,
        "seconds": step.seconds,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
