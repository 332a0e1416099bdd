"""The offline engine: LLM(model).generate(prompts). Also the oracle that tests compare with."""

from __future__ import annotations

import asyncio
import operator
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from pydantic import ValidationError

from workers.config import DType, EngineConfig
from workers.core import request as core
from workers.core.errors import ConfigError, InvalidRequest
from workers.core.request import FinishReason, Request, SampledToken, SamplingParams
from workers.engine import Engine
from workers.models.resolve import resolve_model
from workers.parallel.launcher import RankLauncher
from workers.runner.ranks import load_replica
from workers.text import TextStream, Tokenizer

__all__ = ["LLM", "Completion", "SamplingParams"]

Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Completion:
    """What one prompt became. `token_ids` has the token that ended it (EOS), `text` has not, nor a
    stop string; `text` is empty where the checkpoint has no tokenizer. `logprobs`: one entry a
    token where they were asked for. `cached_tokens` of the prompt were not computed again."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[SampledToken] | None
    cached_tokens: int


class LLM:
    """A model in this process. Blocking, not thread-safe; a context manager, or close() it.

    `model`: a checkpoint directory or a Hugging Face id. Sizes are those of EngineConfig. `seed`
    draws a seed for each request that has none, so that two runs give the same samples. With
    more ranks than this process they are plain processes beside it, or what `rank_launcher` starts:
    `cluster.backends.ray_ranks.RayLauncher()` after ray.init(), anywhere in that Ray cluster. It is
    closed with the LLM. Raises CheckpointError, ConfigError.
    """

    def __init__(
        self,
        model: str,
        dtype: DType = "auto",
        *,
        block_size: int = 16,
        kv_tokens: int | None = None,
        step_tokens: int = 512,
        max_seqs: int = 32,
        context_length: int | None = None,
        tensor_parallel_size: int = 1,
        expert_parallel_size: int = 1,
        threads: int | None = None,
        overlap: bool | None = None,
        seed: int | None = None,
        device: str | None = None,
        rank_launcher: RankLauncher | None = None,
    ) -> None:
        try:
            config = EngineConfig(
                dtype=dtype,
                block_size=block_size,
                kv_tokens=kv_tokens,
                step_tokens=step_tokens,
                max_seqs=max_seqs,
                context_length=context_length,
                tensor_parallel=tensor_parallel_size,
                expert_parallel=expert_parallel_size,
                threads=threads,
                overlap=overlap,
            )
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(str(part) for part in fault["loc"])
            raise ConfigError(f"{place}: {fault['msg']}") from error
        directory = resolve_model(str(model))
        # Token ids in, token ids out needs none; text does, and then its absence is an error.
        self.tokenizer: Tokenizer | None = None
        if (directory / "tokenizer.json").exists():
            self.tokenizer = Tokenizer.load(str(directory))
        runner = load_replica(str(model), config, device=device, launcher=rank_launcher)
        self._engine = Engine(
            runner,
            block_size=config.block_size,
            step_tokens=config.step_tokens,
            max_seqs=config.max_seqs,
            tokenizer=self.tokenizer,
            overlap=config.overlaps(runner.on_gpu),
        )
        self._seeds = random.Random(seed)
        self._requests = 0
        self._loop: asyncio.Runner | None = asyncio.Runner()

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """One completion for each prompt, in order; all are batched together.

        Prompts are texts (BOS added where the model has one) or lists of token ids (used as they
        are). Raises InvalidRequest, ContextTooLong, and KvasirError where the model itself gives no
        usable logits; then there are no completions.
        """
        if self._loop is None:
            raise InvalidRequest("this LLM is closed")
        if _in_event_loop():
            raise InvalidRequest(
                "generate() blocks: within an event loop, call asyncio.to_thread(llm.generate, ...)"
            )
        return self._loop.run(self._generate(self._new_requests(prompts, params)))

    def close(self) -> None:
        """Idempotent."""
        if self._loop is not None:
            self._loop.run(self._engine.close())
            self._loop.close()
            self._loop = None

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _new_requests(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[Request]:
        if isinstance(prompts, str):
            raise InvalidRequest("give a list of prompts, even for one", param="prompts")
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        if len(params) != len(prompts):
            raise InvalidRequest(
                f"{len(prompts)} prompts, but {len(params)} sampling params", param="params"
            )
        requests = []
        for prompt, own in zip(prompts, params, strict=True):
            token_ids = self._token_ids(prompt)
            seed = self._seeds.getrandbits(63) if own.seed is None else own.seed
            name = f"llm-{self._requests}"
            self._requests += 1
            requests.append(Request(name, token_ids, len(token_ids), replace(own, seed=seed)))
        return requests

    def _token_ids(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise InvalidRequest(
                    "this checkpoint has no tokenizer.json: prompts must be token ids",
                    param="prompts",
                )
            return tuple(self.tokenizer.encode(prompt))
        try:
            return tuple(operator.index(token) for token in prompt)
        except TypeError:
            raise InvalidRequest(
                "a prompt is a text or a list of integers", param="prompts"
            ) from None

    async def _generate(self, requests: list[Request]) -> list[Completion]:
        engine = self._engine
        sampled: dict[core.Sequence, list[SampledToken]] = {}
        try:
            for request in requests:
                sampled[engine.add(request)] = []
            while engine.has_work:
                updates = await engine.step()
                assert updates is not None, "work waits, but nothing can run"
                for update in updates:
                    if update.error is not None:
                        raise update.error
                    sampled[update.sequence] += update.tokens
        finally:
            for sequence in sampled:
                engine.abort(sequence)  # finished ones have nothing left to free
            engine.pool.events.take()  # nobody listens here, and they would pile up
        return [self._completion(sequence, tokens) for sequence, tokens in sampled.items()]

    def _completion(self, sequence: core.Sequence, sampled: list[SampledToken]) -> Completion:
        assert sequence.finish_reason is not None, f"{sequence} has not finished"
        prompt = sequence.tokens[: sequence.prompt_len]
        token_ids = sequence.tokens[sequence.prompt_len :]
        text = ""
        if self.tokenizer is not None:
            stream = TextStream(
                self.tokenizer,
                prompt,
                stop=sequence.params.stop,
                min_tokens=sequence.params.min_tokens,
            )
            text = "".join(stream.push(token) for token in token_ids) + stream.finish()
        return Completion(
            prompt_token_ids=prompt,
            token_ids=token_ids,
            text=text,
            finish_reason=sequence.finish_reason,
            logprobs=None if sequence.params.logprobs is None else sampled,
            cached_tokens=sequence.num_cached,
        )


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
