"""What is found piece by piece is what torch finds in one go."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.sampling.largest import largest, top_values

WIDTHS = [1, 37, 2047, 2048, 2049, 4096, 5000, 20_000]
INF = float("inf")


def rows(width: int, dtype: torch.dtype) -> Tensor:
    """Few distinct values, so that the largest stands at many places."""
    generator = torch.Generator().manual_seed(width)
    return torch.randint(-9, 9, (7, width), generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_of_the_largest_is_found(width: int, dtype: torch.dtype) -> None:
    x = rows(width, dtype)
    x[0] = -INF
    x[1, -1] = 100.0
    x[2, width // 2] = INF
    values, indices = largest(x)
    for row, value, index in zip(x.tolist(), values.tolist(), indices.tolist(), strict=True):
        assert value == max(row)
        assert index == row.index(max(row))
    assert indices[1] == width - 1


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("place", [0, -1])
def test_nan_is_the_largest(width: int, place: int) -> None:
    x = rows(width, torch.float32)
    x[3, place] = float("nan")
    values, indices = largest(x)
    assert torch.isnan(values).nonzero().tolist() == [[3]]
    assert indices[3] == place % width


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
