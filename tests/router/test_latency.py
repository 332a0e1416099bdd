"""The latency model on machines whose true step times are known: what it must find from a prior
that is wrong, through stalls and drift, and what it may never predict."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.latency import FittedLatency, HardwareClass
from workers.core.errors import ConfigError
from workers.core.hardware import PROFILES, hardware
from workers.core.step_work import MeasuredStep, StepWork
from workers.models.config import read_shape

LLAMA_8B = read_shape("llama-8b")
H100 = HardwareClass("h100", 1, "kv")
CHUNK = 512
Machine = Callable[[StepWork], float]


def machine(speed: float = 1.0, flops_part: float = 1.0) -> Machine:
    """An H100 that runs an 8B model as a roofline says, `speed` times as long; `flops_part` of its
    peak. Weights are read or rows computed, whichever takes longer: not what is fitted."""

    def seconds(work: StepWork) -> float:
        tokens, kv, pairs, seqs, decode_kv = work
        flops = 2 * 7e9 * (tokens + seqs) + 5.2e5 * (pairs + decode_kv)
        computed = flops / (500e12 * flops_part)
        moved = (15e9 + 131e3 * (kv + decode_kv)) / 2e12
        return speed * (1.5e-3 + 2e-3 * (tokens > 0) + max(computed, moved))

    return seconds


def works(rng: random.Random) -> Iterator[StepWork]:
    """Steps as they come: decodes alone, prompts alone, both."""
    while True:
        seqs = rng.choice([1, 4, 16, 64, 128])
        decodes = StepWork.decode(seqs, seqs * rng.randrange(50, 4000))
        chunk = StepWork.chunk(rng.randrange(1, CHUNK + 1), rng.choice([0, 0, 512, 3000]))
        mixed = chunk._replace(decode_seqs=seqs, decode_kv=decodes.decode_kv)
        yield rng.choice([decodes, chunk, mixed])


def report(true: Machine, rng: random.Random, count: int, noise: float = 0.05, stalls: float = 0.0):
    return [
        MeasuredStep(
            work,
            true(work) * rng.lognormvariate(0, noise) * (10 if rng.random() < stalls else 1),
        )
        for work, _ in zip(works(rng), range(count), strict=False)
    ]


def teach(
    model: FittedLatency,
    true: Machine,
    *,
    count: int = 200,
    replica: str = "r",
    seed: int = 1,
    stalls: float = 0.0,
) -> None:
    model.placed(replica, H100, CHUNK)
    rng = random.Random(seed)
    for _ in range(0, count, 10):
        model.observe(replica, report(true, rng, 10, stalls=stalls))


def off(model: FittedLatency, true: Machine, replica: str = "r") -> float:
    """The median error over steps that it has not seen."""
    rng = random.Random(99)
    errors = sorted(
        abs(model.step_s(replica, work) - true(work)) / true(work)
        for work, _ in zip(works(rng), range(200), strict=False)
    )
    return errors[len(errors) // 2]


# -- before anything is measured -------------------------------------------------------------------


def test_unknown_hardware_lists_what_there_is() -> None:
    assert {"cpu", "a100", "l40s", "h100", "h200", "b200"} == set(PROFILES)
    assert hardware("H100").name == "h100"
    with pytest.raises(ConfigError, match="h100"):
        hardware("abacus")


def test_the_prior_is_bound_by_what_it_should_be() -> None:
    model = FittedLatency(LLAMA_8B, H100)
    assert model.decode_s("x", 1, 100) > 15e9 / 3.35e12, "the weights are read"
    assert model.decode_s("x", 8, 800) < 1.1 * model.decode_s("x", 1, 100), "once for all"
    double = model.prefill_s("x", 8192, 0) / model.prefill_s("x", 4096, 0)
    assert 1.9 < double < 2.5, "twice the rows, and a little attention"
    assert model.prefill_s("x", 1024, 4096) < model.prefill_s("x", 5120, 0)
    assert model.prefill_s("x", 0, 100) == model.decode_s("x", 0, 0) == 0.0
    assert model.transfer_s(25_000_000_000, "p", "d") == pytest.approx(1.0, rel=0.01)


def test_more_ranks_and_faster_devices_are_predicted_faster() -> None:
    def decode_s(name: str, ranks: int) -> float:
        return FittedLatency(LLAMA_8B, HardwareClass(name, ranks)).decode_s("x", 16, 16_000)

    assert decode_s("b200", 1) < decode_s("h200", 1) < decode_s("h100", 1) < decode_s("a100", 1)
    assert decode_s("a100", 1) < decode_s("l40s", 1) < decode_s("cpu", 1)
    assert decode_s("h100", 8) < decode_s("h100", 2) < decode_s("h100", 1)


def test_a_transfer_is_as_fast_as_its_receiver_can_take_it() -> None:
    model = FittedLatency(LLAMA_8B)
    model.placed("far", HardwareClass("cpu"), CHUNK)
    model.placed("near", H100, CHUNK)
    assert model.transfer_s(10**9, "p", "near") < 0.1 < 1.0 < model.transfer_s(10**9, "p", "far")


def test_a_worker_newer_than_the_router_is_not_refused() -> None:
    model = FittedLatency(LLAMA_8B)
    model.placed("r", HardwareClass("x900"), CHUNK)
    assert model.decode_s("r", 1, 100) > 0


def test_unknown_hardware_is_learnt_however_much_faster_than_the_slowest_it_is() -> None:
    """Prompts that a replica computes ten thousand times as fast as a small server would."""
    model, work = FittedLatency(LLAMA_8B), StepWork.chunk(4096, 0)
    model.placed("r", HardwareClass("x900"), 4096)
    true_s = model.prefill_s("r", 4096, 0) / 1e4
    for _ in range(4):
        model.observe("r", [MeasuredStep(work, true_s)] * 4)
    assert model.prefill_s("r", 4096, 0) == pytest.approx(true_s, rel=0.1)


# -- what is learnt --------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [0.2, 0.5, 1.0, 2.0, 5.0])
def test_a_prior_that_is_wrong_is_corrected(speed: float) -> None:
    model, true = FittedLatency(LLAMA_8B), machine(speed)
    teach(model, true)
    assert off(model, true) < 0.1


@pytest.mark.parametrize("flops_part", [0.25, 4.0])
def test_a_prior_of_the_wrong_proportions_is_corrected(flops_part: float) -> None:
    model, true = FittedLatency(LLAMA_8B), machine(1.0, flops_part)
    teach(model, true)
    assert off(model, true) < 0.1


def test_few_steps_scale_the_prior() -> None:
    model, true = FittedLatency(LLAMA_8B), machine(5.0)
    before = off(model, true)
    teach(model, true, count=10)
    assert off(model, true) < 0.3 < before


@pytest.mark.parametrize("seed", range(3))
def test_stalls_move_nothing(seed: int) -> None:
    model, true = FittedLatency(LLAMA_8B), machine(2.0)
    teach(model, true, seed=seed, stalls=0.05)
    assert off(model, true) < 0.1


def test_drift_is_followed() -> None:
    model = FittedLatency(LLAMA_8B)
    teach(model, machine(1.0), count=600)
    assert off(model, machine(1.0)) < 0.1
    teach(model, machine(1.7), count=150, seed=2)
    assert off(model, machine(1.7)) < 0.1


@pytest.mark.parametrize("rare", [2, 20])
def test_a_step_that_bends_after_one_token_is_fitted_on_both_sides(rare: int) -> None:
    """As where a product with one row has a kernel of its own: flat behind it, then a line. One
    step of `rare` is of one sequence."""

    def true(work: StepWork) -> float:
        rows = work.prefill_tokens + work.decode_seqs
        seconds = 0.034 if rows == 1 else 0.076 + 0.002 * max(0, rows - 8)
        return seconds + 1e-6 * (work.decode_kv + work.prefill_pairs)

    model, rng = FittedLatency(LLAMA_8B), random.Random(4)
    model.placed("r", HardwareClass("cpu"), CHUNK)
    for _ in range(40):
        seqs = [rng.choice([2, 3, 6, 8, 16]) if rng.randrange(rare) else 1 for _ in range(8)]
        works = [StepWork.decode(each, 64 * each) for each in seqs]
        works += [StepWork.chunk(rng.randrange(16, 300), 0) for _ in range(3)]
        noisy = [MeasuredStep(work, true(work) * rng.lognormvariate(0, 0.05)) for work in works]
        model.observe("r", noisy)
    for count in (1, 2, 3, 4, 8):
        work = StepWork.decode(count, 64 * count)
        assert model.step_s("r", work) == pytest.approx(true(work), rel=0.05), count
    steps = [model.decode_s("r", count, 64 * count) for count in range(1, 40)]
    assert all(a <= b for a, b in pairwise(steps))


def test_decodes_alone_leave_prompts_to_the_prior() -> None:
    model, prior = FittedLatency(LLAMA_8B), FittedLatency(LLAMA_8B, H100)
    rng, true = random.Random(1), machine(1.0)
    model.placed("r", H100, CHUNK)
    for _ in range(50):
        work = StepWork.decode(rng.randrange(1, 64), rng.randrange(64, 20_000))
        model.observe("r", [MeasuredStep(work, true(work))] * 4)
    for tokens, context in ((64, 0), (512, 0), (512, 8000)):
        ratio = model.prefill_s("r", tokens, context) / prior.prefill_s("r", tokens, context)
        assert 0.3 < ratio < 3.0


def test_a_long_prompt_costs_the_sum_of_its_chunks() -> None:
    model = FittedLatency(LLAMA_8B)
    teach(model, machine(2.0))
    tokens, context = 3 * CHUNK + 100, 700
    chunks = [(min(CHUNK, tokens - at), context + at) for at in range(0, tokens, CHUNK)]
    steps = sum(model.step_s("r", StepWork.chunk(*chunk)) for chunk in chunks)
    assert model.prefill_s("r", tokens, context) == pytest.approx(steps)
    model.placed("r", H100, tokens)
    assert model.prefill_s("r", tokens, context) < steps, "one step has one overhead"


# -- classes and replicas --------------------------------------------------------------------------


def test_a_new_replica_of_a_known_class_is_predicted_before_its_first_step() -> None:
    model, true = FittedLatency(LLAMA_8B), machine(4.0)
    teach(model, true, replica="old")
    model.placed("new", H100, CHUNK)
    assert off(model, true, "new") < 0.1
    model.placed("other", H100._replace(tensor_ranks=2), CHUNK)
    assert off(model, true, "other") > 0.5, "that is another class"


def test_a_slow_replica_is_its_own_affair() -> None:
    model, usual, slow = FittedLatency(LLAMA_8B), machine(1.0), machine(1.8)
    rng = random.Random(3)
    for name in ("a", "b", "c", "slow"):
        model.placed(name, H100, CHUNK)
    for _ in range(40):
        for name in ("a", "b", "c", "slow"):
            model.observe(name, report(slow if name == "slow" else usual, rng, 10))
    assert off(model, slow, "slow") < 0.12
    assert off(model, usual, "a") < 0.1
    model.placed("new", H100, CHUNK)
    assert off(model, usual, "new") < 0.12


def test_who_is_forgotten_comes_back_as_one_of_its_class() -> None:
    model, usual, slow = FittedLatency(LLAMA_8B), machine(1.0), machine(1.8)
    rng = random.Random(3)
    for _ in range(30):
        for name in ("a", "b", "c", "slow"):
            model.placed(name, H100, CHUNK)
            model.observe(name, report(slow if name == "slow" else usual, rng, 10))
    model.forget("slow")
    model.placed("slow", H100, CHUNK)
    assert off(model, usual, "slow") < 0.12
    assert not model.errors.of("slow")


def test_a_replica_that_moved_to_other_hardware_starts_anew() -> None:
    model = FittedLatency(LLAMA_8B)
    teach(model, machine(4.0))
    model.placed("r", H100._replace(hardware="a100"), CHUNK)
    fresh = FittedLatency(LLAMA_8B, HardwareClass("a100", 1, "kv"))
    assert model.decode_s("r", 8, 8000) == fresh.decode_s("r", 8, 8000)


def test_nonsense_is_not_measured() -> None:
    model = FittedLatency(LLAMA_8B, H100)
    before = model.decode_s("r", 4, 400)
    work = StepWork.decode(4, 400)
    nonsense = [(StepWork(), 1.0), *((work, s) for s in (0.0, -1.0, 1e9, float("nan")))]
    model.observe("r", [MeasuredStep(*each) for each in nonsense])
    assert model.decode_s("r", 4, 400) == before


def test_sizes_that_cannot_be_do_not_stop_the_router() -> None:
    """Whatever one worker says of its steps, predictions stay positive numbers."""
    for seed in range(40):
        model, rng = FittedLatency(LLAMA_8B, H100), random.Random(seed)
        for _ in range(20):
            steps = []
            for _ in range(4):
                tokens, kv = rng.choice([0, 1, 10**4, 10**9]), rng.choice([0, 10**6, 10**15])
                pairs, seqs = rng.choice([0, 10**8, 10**18]), rng.choice([1, 5, 10**6])
                work = StepWork(tokens, kv, pairs, seqs, rng.choice([0, 10**7, 10**15]))
                off = 10 ** rng.uniform(-4.9, 4.9)
                steps.append(MeasuredStep(work, model.step_s("r", work) * off))
            model.observe("r", steps)
        assert 0 < model.prefill_s("r", 2000, 0) < math.inf


# -- what may never be predicted -------------------------------------------------------------------

SECONDS = st.floats(1e-5, 10.0)
WORK = st.builds(
    StepWork,
    st.integers(0, 8192),
    st.integers(0, 1 << 20),
    st.integers(0, 1 << 30),
    st.integers(0, 512),
    st.integers(0, 1 << 22),
)
STEPS = st.lists(st.builds(MeasuredStep, WORK, SECONDS), max_size=20)


@settings(max_examples=25)
@given(STEPS, WORK, WORK, st.integers(1, 4096))
def test_more_work_is_never_predicted_faster_whatever_was_measured(
    steps: list[MeasuredStep], work: StepWork, more: StepWork, chunk: int
) -> None:
    model = FittedLatency(LLAMA_8B)
    model.placed("r", H100, chunk)
    for start in range(0, len(steps), 7):
        model.observe("r", steps[start : start + 7])
    if work.prefill_tokens or not more.prefill_tokens:  # with prompts in it, it is another kind
        both = StepWork(*(a + b for a, b in zip(work, more, strict=True)))
        assert 0 < model.step_s("r", work) <= model.step_s("r", both) * (1 + 1e-9)
    sizes = (1, 2, 3, 7, 8, 9, 64, 65, 100, chunk, chunk + 1, 10_000, 100_000)
    alone = [model.prefill_s("r", size, 64) for size in sorted(sizes)]
    batches = [model.decode_s("r", size, 64 * size) for size in sorted(sizes)]
    contexts = [model.prefill_s("r", 300, size) for size in sorted(sizes)]
    for times in (alone, batches, contexts):
        assert all(a <= b * (1 + 1e-9) for a, b in pairwise(times))
        assert times[0] > 0 and times[-1] < float("inf")


# -- how wrong it was ------------------------------------------------------------------------------


def test_errors_are_those_of_predictions_made_before() -> None:
    model = FittedLatency(LLAMA_8B)
    model.placed("r", H100, CHUNK)
    work = StepWork.decode(8, 8000)
    prior_s = model.step_s("r", work)
    model.observe("r", [MeasuredStep(work, 2 * prior_s)] * 20)
    track = model.errors.of("r")["decode step"]
    assert track.count == 20 and track.predicted_s == prior_s and track.actual_s == 2 * prior_s
    assert track.error == pytest.approx(0.5) and track.bias == pytest.approx(-0.5)
    model.observe("r", [MeasuredStep(work, 2 * prior_s)] * 128)
    assert track.error < 0.05, "the newest count"
    assert "prefill step" not in model.errors.of("r")
