"""The tokens of a step: on the device at once, for the next step, on the host a little later."""

from __future__ import annotations

import math
from itertools import islice

import torch
from torch import Tensor

from workers.core.batch import Choice
from workers.core.errors import KvasirError
from workers.core.request import SampledToken
from workers.sampling.logits import params_error
from workers.sampling.plan import SamplingPlan

UNUSABLE = -1  # in place of a token


class Sampled:
    """`tokens`: int64 [n] on the device of the logits, -1 where none can be chosen."""

    def __init__(self, plan: SamplingPlan, logits: Tensor, largest: Tensor, tokens: Tensor) -> None:
        """logits: the model's own, [n, vocab]; largest: of each row once it was edited, [n]. Starts
        the one copy to the host."""
        self.tokens = tokens
        self._plan = plan
        self._logits = logits
        self._largest = largest
        self._num_ints = len(plan.rows) + sum(count for _, count in plan.logprobs)
        packed = tokens.view(torch.uint8)
        if plan.logprobs:
            packed = _with_logprobs(tokens, logits, plan.logprobs)
        self._host, self._copied = _to_host(packed)

    def read(self) -> list[Choice]:
        """Waits until the device has chosen. A row without a finite largest logit gets an error
        that names its request: InvalidRequest where the request's own parameters made it so, else
        KvasirError."""
        if self._copied is not None:
            self._copied.synchronize()
        rows = self._plan.rows
        tokens = self._host[: 8 * self._num_ints].view(torch.int64).tolist()
        choices: list[Choice] = [
            SampledToken(token, row.position) if token != UNUSABLE else self._error(i)
            for i, (token, row) in enumerate(zip(tokens, rows, strict=False))
        ]
        others = iter(tokens[len(rows) :])
        logprobs = iter(self._host[8 * self._num_ints :].view(torch.float32).tolist())
        for i, count in self._plan.logprobs:
            own = next(logprobs)
            top = tuple(zip(islice(others, count), islice(logprobs, count), strict=True))
            if tokens[i] != UNUSABLE:
                choices[i] = SampledToken(tokens[i], rows[i].position, own, top)
        return choices

    def _error(self, index: int) -> KvasirError:
        """Why no token of this row can be chosen. Rare: it waits for the device."""
        row = self._plan.rows[index]
        own = float(self._logits[index].amax())
        if math.isfinite(own):
            return params_error(row, float(self._largest[index]))
        return KvasirError(
            f"request {row.sequence.id}: the model gave no usable logits for position "
            f"{row.position} (largest is {own})"
        )


class Computed:
    """In place of Sampled, of a step that samples nothing: it is over all the same only when the
    device has written its pages."""

    def __init__(self, device: torch.device) -> None:
        self._over = _recorded(device)

    def read(self) -> list[Choice]:
        if self._over is not None:
            self._over.synchronize()
        return []


def _with_logprobs(tokens: Tensor, logits: Tensor, wanted: list[tuple[int, int]]) -> Tensor:
    """uint8: tokens; the alternatives of each row that wants any; for each row that wants logprobs
    the chosen token's (of the model's own distribution), then those of its alternatives."""
    ints, floats = [tokens], []
    for row, count in wanted:
        # One row at a time: the order of a batched reduction may depend on the batch.
        own = logits[row].to(torch.float32)
        total = own.logsumexp(-1)
        floats.append(own.gather(0, tokens[row : row + 1].clamp(min=0)) - total)
        if count:
            top = own.topk(count)
            ints.append(top.indices)
            floats.append(top.values - total)
    return torch.cat((torch.cat(ints).view(torch.uint8), torch.cat(floats).view(torch.uint8)))


def _to_host(data: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy on the host, and what says that it is there."""
    if data.device.type != "cuda":
        return data, None
    host = torch.empty_like(data, device="cpu", pin_memory=True)
    host.copy_(data, non_blocking=True)
    return host, _recorded(data.device)


def _recorded(device: torch.device) -> torch.cuda.Event | None:
    """What says that everything asked of the device so far is done; None: it is."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
