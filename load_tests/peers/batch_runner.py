"""transformers without a server; run in its own environment, which has nothing of ours.

    python batch_runner.py generate|continuous MODEL DTYPE KV_TOKENS

Reads lines of JSON, {"prompts": [[ids], ...], "output_tokens": n}, and answers each with {"sent",
"ended", "arrivals": [[seconds, ...], ...]}, one list for each prompt. Says {"ready": true} first.
`generate` computes the prompts as one batch, so all of them get their tokens at the same times;
`continuous` puts them into the queue of its continuous batching.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

Run = Callable[[list[list[int]], int], list[list[float]]]
KV_PAGE = 256  # tokens; the default of transformers


def main() -> None:
    mode, model_dir, dtype, kv_tokens = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes to the log
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).eval()
    run = _generate(model) if mode == "generate" else _continuous(model, int(kv_tokens))
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        job = json.loads(line)
        sent = time.perf_counter()
        arrivals = run(job["prompts"], job["output_tokens"])
        answer = {"sent": sent, "ended": time.perf_counter(), "arrivals": arrivals}
        print(json.dumps(answer), file=answers)
    os._exit(0)  # the thread of continuous batching would keep the process


class _Stamps(StoppingCriteria):
    """Never stops; it is asked after every token, which is when it looks at the clock."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def _generate(model: Any) -> Run:
    @torch.inference_mode()
    def run(prompts: list[list[int]], output_tokens: int) -> list[list[float]]:
        stamps = _Stamps()
        ids = torch.tensor(prompts)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_exactly(output_tokens),
            stopping_criteria=StoppingCriteriaList([stamps]),
        )
        return [stamps.times] * len(prompts)

    return run


def _continuous(model: Any, kv_tokens: int) -> Run:
    # Left alone it takes most of the free memory for its cache.
    config = ContinuousBatchingConfig(num_blocks=kv_tokens // KV_PAGE, page_size=KV_PAGE)
    manager = model.init_continuous_batching(_exactly(1), config)
    manager.start()

    def run(prompts: list[list[int]], output_tokens: int) -> list[list[float]]:
        names = manager.add_requests(prompts, max_new_tokens=output_tokens, record_timestamps=True)
        times: dict[str, list[float]] = {}
        while len(times) < len(names):
            result = manager.get_result(timeout=1.0)
            if result is None and not manager.is_running():
                raise SystemExit("continuous batching has ended by itself")
            if result is not None and result.is_finished():
                if result.error:
                    raise SystemExit(result.error)
                times[result.request_id] = result.timestamps
        return [times[name] for name in names]

    return run


def _exactly(tokens: int) -> GenerationConfig:
    """Greedy, whatever the end-of-text token says."""
    return GenerationConfig(do_sample=False, max_new_tokens=tokens, eos_token_id=-1, pad_token_id=0)


if __name__ == "__main__":
    main()
