"""What is drawn exactly: thresholds found in two ways, and shares of 124-bit products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from workers.sampling.draw import draw, share_of
from workers.sampling.truncation import ONE, digit_by_digit, likeliest_first

WAYS = [digit_by_digit, likeliest_first]
wide = st.integers(0, 2**62 - 1)


@example(2**62 - 1, 2**62)
@example(2**62 - 1, 2**62 - 1)
@example(2**62 - 2**31, 2**62 - 1)
@example(2**31 - 1, 2**31 - 1)
@given(number=wide, total=wide)
def test_a_share_is_what_integers_of_any_length_say(number: int, total: int) -> None:
    share = share_of(torch.tensor([number]), torch.tensor([total]))
    assert share.tolist() == [number * total >> 62]


def test_shares_are_spread_evenly() -> None:
    """Of equidistant numbers each of 1000 shares gets as many."""
    numbers = torch.arange(0, 2**62, 2**62 // 100_000)
    counts = share_of(numbers, torch.full_like(numbers, 1000)).bincount()
    assert len(counts) == 1000 and int(counts.max() - counts.min()) <= 1


def test_a_draw_never_falls_on_a_weight_of_zero() -> None:
    weights = torch.tensor([0, 3, 0, 5, 0])
    numbers = torch.tensor([0, 3 * 2**59 - 1, 3 * 2**59, 2**62 - 1])
    assert draw(weights.repeat(4, 1), numbers).tolist() == [1, 1, 3, 3]


@st.composite
def distributions(draw: st.DrawFn) -> Tensor:
    """Weights as exp makes them, [vocab] float32 before rounding: flat, steep, with ties, zeros."""
    vocab = draw(st.sampled_from([1, 2, 37, 300, 3000]))
    seed, spread = draw(st.integers(0, 999)), draw(st.sampled_from([0.0, 1e-6, 0.1, 3.0, 40.0]))
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * spread
    if draw(st.booleans()):
        logits = logits.round()
    return (logits - logits.amax()).exp() * ONE


def threshold(weights: Tensor, need: int) -> int:
    """By sorting, in integers of any length."""
    mass = 0
    for weight in sorted(weights.tolist(), reverse=True):
        mass += weight
        if mass >= need:
            return int(weight)
    raise AssertionError("more than there is")


@pytest.mark.parametrize("find", WAYS)
@given(
    distributions(),
    st.one_of(st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.floats(0, 1)),
    st.floats(0, 1),
)
def test_the_threshold_is_the_largest_that_keeps_enough(
    find: Callable[[Tensor, Tensor, Tensor], Tensor], scaled: Tensor, share: float, floor: float
) -> None:
    weights = scaled.long()
    kept = torch.where(weights >= int(floor * ONE), weights, 0)
    need = max(1, int(share * int(kept.sum())))
    # Beside a row of another kind, which takes the other branch where there are branches.
    flat = torch.full_like(scaled, ONE)
    pair = torch.stack((scaled, flat)), torch.stack((kept, flat.long()))
    found = find(*pair, torch.tensor([need, ONE * len(flat)]))
    assert found.tolist() == [threshold(kept, need), ONE]


@pytest.mark.parametrize("find", WAYS)
def test_arbitrary_numbers_do_no_harm(find: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """As rows with unusable logits leave them: their thresholds are not used."""
    scaled = torch.tensor([[torch.nan] * 300, [torch.inf] * 300, [0.0] * 300])
    weights = torch.tensor([[-(2**63)] * 300, [2**63 - 1] * 300, [0] * 300])
    for need in (-(2**63), 0, 2**63 - 1):
        assert find(scaled, weights, torch.full((3,), need)).shape == (3,)
