"""What is found piece by piece is what torch finds in one go."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from torch import Tensor

from workers.kernels.library import load_library
from workers.sampling.largest import largest, piecewise_largest, top_values

WIDTHS = [1, 37, 2047, 2048, 2049, 4096, 5000, 20_000]
WAYS = [largest, piecewise_largest]  # the first is compiled where there is a compiler
DTYPES = [torch.float32, torch.bfloat16]
INF = float("inf")
Find: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]


def rows(width: int, dtype: torch.dtype) -> Tensor:
    """Few distinct values, so that the largest stands at many places."""
    generator = torch.Generator().manual_seed(width)
    return torch.randint(-9, 9, (7, width), generator=generator).to(dtype)


@pytest.mark.parametrize("find", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_of_the_largest_is_found(width: int, dtype: torch.dtype, find: Find) -> None:
    x = rows(width, dtype)
    x[0] = -INF
    x[1, -1] = 100.0
    x[2, width // 2] = INF
    x[3] = -0.0
    x[3, width // 2] = 0.0  # equal to the others
    values, indices = find(x)
    for row, value, index in zip(x.tolist(), values.tolist(), indices.tolist(), strict=True):
        assert value == max(row)
        assert index == row.index(max(row))
    assert indices[1] == width - 1
    assert values.dtype == dtype and indices.dtype == torch.int64


@pytest.mark.parametrize("find", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_nan_is_the_largest(
    width: int, place: int, sign: float, dtype: torch.dtype, find: Find
) -> None:
    x = rows(width, dtype)
    x[2, 0] = INF
    x[3, place] = math.copysign(math.nan, sign)
    x[4, width // 2 :] = math.nan
    values, indices = find(x)
    assert torch.isnan(values).nonzero().tolist() == [[3], [4]]
    assert indices[3] == place % width
    assert indices[4] == width // 2


@pytest.mark.parametrize("find", WAYS)
def test_rows_may_stand_apart(find: Find) -> None:
    wide = rows(6001, torch.float32)
    for x in (wide[:, 3:5003], wide[:1].expand(5, -1), wide.t(), wide[::2, ::2], wide[:0]):
        for found, expected in zip(find(x), x.max(-1), strict=True):
            assert torch.equal(found, expected)


@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=90)),
    st.sampled_from(DTYPES),
    st.sampled_from(WAYS),
)
def test_any_floats(array: NDArray[np.float32], dtype: torch.dtype, find: Find) -> None:
    x = torch.from_numpy(array).to(dtype)
    values, indices = find(x)
    expected = x.max(-1)
    assert torch.equal(indices, expected.indices)
    torch.testing.assert_close(values, expected.values, rtol=0, atol=0, equal_nan=True)


def test_half_precision_takes_the_plain_way() -> None:
    x = rows(5000, torch.float16)
    for found, expected in zip(largest(x), x.max(-1), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.skipif(not load_library(), reason="no compiler was here")
def test_the_compiled_kernel_refuses_what_it_cannot_read() -> None:
    for bad in (
        torch.zeros(3),
        torch.zeros(3, 0),
        torch.zeros(4, 4).t()[:, :2],
        torch.ones(2, 2).long(),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.kvasir.argmax(bad)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("k", [1, 2, 20, 78, 79, 256])
def test_top_values_are_those_of_topk(width: int, k: int) -> None:
    k = min(k, width)
    generator = torch.Generator().manual_seed(k)
    many = torch.randn((5, width), generator=generator)
    for x in (many, rows(width, torch.float32)):
        assert torch.equal(top_values(x, k), x.topk(k).values)


def test_a_crowded_piece_gives_all_it_has() -> None:
    x = torch.zeros(1, 20_000)
    x[0, 300:320] = torch.arange(1.0, 21.0)  # the 20 largest stand in one piece of 128
    assert top_values(x, 20)[0].tolist() == list(range(20, 0, -1))
