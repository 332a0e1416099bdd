"""Triton kernels between attention calls. Pointers are to the first element; a kernel's loop over a
row is one masked tile, so every width works. float32 inside, rounded where it is stored."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_rms_norm(
    x, residual, weight, out, eps, WIDTH: tl.constexpr, TILE: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    """A program for each row of [T, WIDTH]."""
    at = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, TILE)
    inside = column < WIDTH
    row = tl.load(residual + at + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        row += tl.load(x + at + column, mask=inside, other=0.0).to(tl.float32)
        # What later layers read is the rounded sum, so that is what is normalised.
        stored = row.to(residual.dtype.element_ty)
        tl.store(residual + at + column, stored, mask=inside)
        row = stored.to(tl.float32)
    scale = 1.0 / tl.sqrt_rn(tl.sum(row * row) / WIDTH + eps)
    row *= scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at + column, row.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rotate(
    heads, cos, sin, weight, eps, token_stride,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """A program for ROWS heads of one token, in place. TILE covers half a head."""
    HALF: tl.constexpr = WIDTH // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, TILE)[None, :]
    inside = (head < HEADS) & (column < HALF)
    at = heads + token * token_stride + head * WIDTH + column
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        scale = (1.0 / tl.sqrt_rn(squares / WIDTH + eps))[:, None]
        own = weight + head * WIDTH + column
        first *= scale * tl.load(own, mask=inside, other=0.0).to(tl.float32)
        second *= scale * tl.load(own + HALF, mask=inside, other=0.0).to(tl.float32)
    angle = token * HALF + column
    c = tl.load(cos + angle, mask=column < HALF, other=0.0)
    s = tl.load(sin + angle, mask=column < HALF, other=0.0)
    kind = heads.dtype.element_ty
    tl.store(at, (first * c - second * s).to(kind), mask=inside)
    tl.store(at + HALF, (second * c + first * s).to(kind), mask=inside)


@triton.jit
def gated(gate_up, out, WIDTH: tl.constexpr, TILE: tl.constexpr, ACTIVATION: tl.constexpr):
    """A program for TILE columns of one row: [T, 2 WIDTH] -> [T, WIDTH]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < WIDTH
    at = gate_up + row * 2 * WIDTH + column
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + WIDTH, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        result = gate / (1.0 + tl.exp(-gate)) * up
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh(z)) / 2 is the logistic function of 2 z; 2 sqrt(2 / pi) = 1.5957...
        wave = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
        result = gate / (1.0 + tl.exp(-wave)) * up
    else:
        tl.static_assert(ACTIVATION == "clamped_silu")
        gate = tl.minimum(gate, 7.0)
        up = tl.minimum(tl.maximum(up, -7.0), 7.0)
        result = gate / (1.0 + tl.exp(-1.702 * gate)) * (up + 1.0)
    tl.store(out + row * WIDTH + column, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def combine(
    rows, places, weights, out,
    WIDTH: tl.constexpr, TILE: tl.constexpr, ACTIVE: tl.constexpr,
):  # fmt: skip
    """A program for TILE columns of one token: its ACTIVE rows of [n, WIDTH], weighted."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = column < WIDTH
    total = tl.zeros([TILE], tl.float32)
    for choice in range(ACTIVE):
        at = tl.load(places + token * ACTIVE + choice).to(tl.int64) * WIDTH + column
        weight = tl.load(weights + token * ACTIVE + choice)
        total += weight * tl.load(rows + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * WIDTH + column, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def grouped_product(
    x, weight, bias, ends, out,
    EXPERTS: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, BIAS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, TABLE: tl.constexpr,
):  # fmt: skip
    """A program for ROWS rows of one expert and COLUMNS of its outputs. There are more programs
    than tiles of rows, as the host does not know what each expert has. TABLE covers EXPERTS."""
    each = tl.arange(0, TABLE)
    end = tl.load(ends + each, mask=each < EXPERTS, other=0)
    start = tl.load(ends + each - 1, mask=(each > 0) & (each < EXPERTS), other=0)
    tiles = tl.cumsum(tl.where(each < EXPERTS, (end - start + ROWS - 1) // ROWS, 0), 0)
    tile = tl.program_id(0)
    expert = tl.sum((tiles <= tile).to(tl.int32))  # those whose tiles end before this one
    if expert < EXPERTS:
        tile -= tl.max(tl.where(tiles <= tile, tiles, 0))
        own = each == expert
        row = tl.sum(tl.where(own, start, 0)) + tile * ROWS + tl.arange(0, ROWS)
        is_row = row < tl.sum(tl.where(own, end, 0))
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        is_column = column < OUTPUTS
        k = tl.arange(0, DEPTH)
        rows = x + row.to(tl.int64)[:, None] * INPUTS
        first = expert.to(tl.int64) * OUTPUTS * INPUTS
        columns = weight + first + column[None, :] * INPUTS
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for at in range(0, INPUTS, DEPTH):
            inside = at + k < INPUTS
            a = tl.load(rows + (at + k)[None, :], mask=is_row[:, None] & inside[None, :], other=0.0)
            b = tl.load(
                columns + (at + k)[:, None], mask=inside[:, None] & is_column[None, :], other=0.0
            )
            total = tl.dot(a, b, total, input_precision="tf32x3")
        if BIAS:
            more = tl.load(bias + expert * OUTPUTS + column, mask=is_column, other=0.0)
            total += more.to(tl.float32)[None, :]
        places = out + row.to(tl.int64)[:, None] * OUTPUTS + column[None, :]
        tl.store(places, total.to(out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])
