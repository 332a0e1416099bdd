"""Sampler in two phases: what it reads when, and that nothing on the device's side waits for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.workers.test_sampling import EOS, choose, params, random_logits, sequence
from workers.core.errors import Code, KvasirError
from workers.core.request import SampledToken, Sequence
from workers.sampling import Row, Sampler
from workers.sampling.buffer import Packer
from workers.sampling.truncation import digit_by_digit

META = torch.device("meta")
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"seed": 1},
    {"seed": 2, "top_p": 0.9},
    {"seed": 3, "top_k": 40, "top_p": 0.8, "min_p": 0.01},
    {"seed": 4, "min_p": 0.1, "logit_bias": {7: 1.0}},
    {"seed": 5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    {"temperature": 0.0, "min_tokens": 9, "stop_token_ids": (3,), "logprobs": 0},
    {"seed": 6, "top_p": 0.5, "logprobs": 3},
]


def rows_of(seqs: list[Sequence]) -> list[Row]:
    return [Row(seq, len(seq.tokens)) for seq in seqs]


@given(
    st.lists(
        st.one_of(
            st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
            st.lists(st.floats(width=32, allow_nan=False), max_size=5),
        ),
        max_size=6,
    )
)
def test_what_is_packed_is_found_again(arrays: list[list[int] | list[float]]) -> None:
    packer = Packer()
    spans = [
        packer.floats(values) if any(isinstance(v, float) for v in values) else packer.ints(values)
        for values in arrays
    ]
    data = packer.pack(torch.device("cpu"))
    assert [span.of(data).tolist() for span in spans] == arrays
    assert [span.size for span in spans] == [len(values) for values in arrays]


def test_tokens_are_there_before_they_are_read() -> None:
    logits = random_logits(1, len(KINDS) + 1, 300)
    logits[-1] = math.nan
    seqs = [sequence(output=(4,), **kind) for kind in KINDS] + [sequence(temperature=0.0)]
    sampler = Sampler(300, (EOS,), logits.device)
    with torch.inference_mode():
        sampled = sampler.launch(logits, sampler.plan(rows_of(seqs)))
    assert sampled.tokens.dtype == torch.int64
    *choices, error = sampled.read()
    assert isinstance(error, KvasirError)
    ids = [choice.id for choice in choices if isinstance(choice, SampledToken)]
    assert sampled.tokens.tolist() == [*ids, -1]


@pytest.mark.parametrize("kind", [k for k in KINDS if "frequency_penalty" not in k])
def test_the_token_before_need_not_be_known(kind: dict[str, Any]) -> None:
    logits = random_logits(2, vocab=300)
    known = sequence(output=(4, 9), **kind)
    awaited = sequence(output=(4,), **kind)
    sampler = Sampler(300, (EOS,), logits.device)
    sampled = sampler.launch(logits, sampler.plan([Row(awaited, 5)]))
    assert sampled.read() == choose(logits, [known])


def test_penalties_need_every_token() -> None:
    sampler = Sampler(300, (EOS,), torch.device("cpu"))
    with pytest.raises(AssertionError, match="every token"):
        sampler.plan([Row(sequence(temperature=0.0, presence_penalty=1.0), 4)])


def test_what_happens_to_a_sequence_after_the_plan_changes_nothing() -> None:
    logits = random_logits(3, len(KINDS), 300)
    seqs = [sequence(output=(4,), **kind) for kind in KINDS]
    expected = choose(logits, seqs)
    sampler = Sampler(300, (EOS,), logits.device)
    plan = sampler.plan(rows_of(seqs))
    for seq in seqs:
        seq.tokens += [7, 8]
    sampled = sampler.launch(logits, plan)
    for seq in seqs:
        seq.tokens.clear()
    assert sampled.read() == expected


def test_an_error_is_explained_by_the_plan() -> None:
    """The sequence may have grown by tokens of the step after, or have been aborted."""
    logits = torch.zeros(1, 37)
    seq = sequence(temperature=0.0, min_tokens=1, stop_token_ids=tuple(range(37)))
    sampler = Sampler(37, (EOS,), logits.device)
    sampled = sampler.launch(logits, sampler.plan(rows_of([seq])))
    seq.tokens += [5, 5]
    (error,) = sampled.read()
    assert isinstance(error, KvasirError) and error.code is Code.INVALID_ARGUMENT
    assert "position 3" in error.message


@settings(max_examples=40)
@given(
    rows=st.lists(params(), min_size=1, max_size=6),
    vocab=st.sampled_from([37, 1000, 4099]),
    spread=st.sampled_from([0.01, 1.0]),
    coarse=st.booleans(),
)
def test_a_device_chooses_as_a_cpu_does(
    rows: list[dict[str, Any]], vocab: int, spread: float, coarse: bool
) -> None:
    """As far as one code can show it: the ways of a device, on a CPU."""
    logits = random_logits(4, len(rows), vocab) * spread
    if coarse:
        logits = logits.round()
    seqs = [sequence(prompt=(1, 2, 3) * i, output=(4,), **p) for i, p in enumerate(rows, 1)]
    device = Sampler(vocab, (EOS,), logits.device, digit_by_digit)
    assert device.launch(logits, device.plan(rows_of(seqs))).read() == choose(logits, seqs)


class NothingReadBack(TorchDispatchMode):
    """Raises where a device would have to be waited for: something is read from it, copied off it,
    sized by its data, or copied to it from memory that is not pinned. `copies`: of the plan."""

    WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "is_nonzero")

    def __init__(self, plan: Tensor, device: torch.device) -> None:
        super().__init__()
        self._plan = plan
        self._device = device
        self.seen: set[str] = set()
        self.copies = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__.partition(".")[0]
        self.seen.add(name)
        assert name.strip("_") not in [wait.strip("_") for wait in self.WAITS], name
        flat = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else [arg])]
        inputs = [x for x in flat if isinstance(x, Tensor)]
        result = func(*args, **kwargs or {})
        for output in result if isinstance(result, list | tuple) else [result]:
            if not isinstance(output, Tensor):
                continue
            if not inputs:
                assert name.startswith(("empty", "zeros", "arange", "scalar_tensor")), name
                assert output.device == self._device, f"{name} on {output.device}"
            elif any(x.device != output.device for x in inputs):
                assert name == "_to_copy" and inputs[0] is self._plan, name
                assert output.device == self._device
                self.copies += 1
        return result


@pytest.mark.parametrize("kinds", [KINDS[:1], KINDS[1:], KINDS * 20])
def test_launch_waits_for_nothing(kinds: list[dict[str, Any]]) -> None:
    """On meta tensors, which have no values to be read: one that is copied raises by itself."""
    seqs = [sequence(output=(4, 4, 5), **kind) for kind in kinds]
    sampler = Sampler(151_936, (EOS,), META)
    plan = sampler.plan(rows_of(seqs))
    logits = torch.empty(len(seqs), 151_936, dtype=torch.bfloat16, device=META)
    with NothingReadBack(plan.data, logits.device) as ops:
        sampled = sampler.launch(logits, plan)
    assert sampled.tokens.device == META and sampled.tokens.shape == (len(seqs),)
    assert ops.copies == (len(kinds) > 1)
    if len(kinds) > 1:
        assert {"topk", "scatter_add_", "searchsorted", "logsumexp", "index_put_"} <= ops.seen


@pytest.mark.parametrize("kinds", [KINDS[:1], KINDS[1:], KINDS])
def test_launch_reads_no_value(kinds: list[dict[str, Any]]) -> None:
    """The same with values: the ways of a device on a CPU, watched."""
    seqs = [sequence(output=(4, 4, 5), **kind) for kind in kinds]
    logits = random_logits(5, len(seqs), 5000)
    sampler = Sampler(5000, (EOS,), logits.device, digit_by_digit)
    plan = sampler.plan(rows_of(seqs))
    with NothingReadBack(plan.data, logits.device) as ops:
        sampled = sampler.launch(logits, plan)
    assert ops.copies == 0 and len(ops.seen) > 3
    assert sampled.read() == choose(logits, seqs)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.tolist(),
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: torch.ones(3).to(META),
    ],
)
def test_the_watch_sees_what_waits(wait: Callable[[Tensor], Any]) -> None:
    x = torch.ones(3, device=META)
    with (
        pytest.raises((AssertionError, RuntimeError, NotImplementedError)),
        NothingReadBack(x, META),
    ):
        wait(x)
